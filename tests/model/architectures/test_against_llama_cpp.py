"""Every family against llama.cpp: the same random weights, live here and exported as GGUF there."""

import pytest
import torch

from settle.base.errors import FormatError
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.model.adapters import PREFIX
from settle.model.adapters.lora import LoRA
from settle.model.config import ROUTERS
from settle.model.load_adapter import TrainedAdapter
from tests.model.architectures.cases import BEYOND_GGUF, CASES, random_model

POSITIONS = [0, 1, 5, 6, 7, 11, 14, 15, 16, 23, 39]


@pytest.mark.parametrize("name", [name for name in CASES if name not in BEYOND_GGUF])
def test_equals_llama_cpp(name, tokenizer, tmp_path) -> None:
    case = CASES[name]
    part = case.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = random_model(part)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    path = export_gguf(part, weights, tokenizer, tmp_path / "x.gguf", "f32")
    _deviate_as_llama_cpp(model)
    _equal(model, Engine(path, threads=1))

    adapter = _adapter(part)
    lora = export_lora(part, adapter, tmp_path / "lora.gguf")
    with torch.no_grad():
        for module, parameter in adapter.parameters(part).items():
            down, up = map(torch.from_numpy, adapter.lora.pairs[module])
            model.get_parameter(parameter).add_(up @ down, alpha=adapter.method.scale)
    _equal(model, Engine(path, threads=1, adapter=lora))


def _deviate_as_llama_cpp(model) -> None:
    """It divides by one gate less for the deviation of a token's gates (Gemma 3n), which matters to few gates."""
    for layer in model.layers:
        if layer.options.sparsity:
            layer.mlp.open_gates.deviations *= (layer.options.inner / (layer.options.inner - 1)) ** 0.5


def _equal(model, engine) -> None:
    """Compare logits at POSITIONS.

    The engine rounds its cache of keys and values to half precision; with a cache in fp32 the differences are 1e-5
    (Gemma's 4e-3, where llama.cpp looks its GELU up in a table of half precision).
    """
    with engine:
        ids = torch.randint(5, engine.num_vocab, (40,), generator=torch.Generator().manual_seed(2)).tolist()
        positions = [p for p in POSITIONS if p < engine.context - 1]
        live = logprobs(model, ids, positions)
        for row, position in zip(live, positions, strict=True):
            found = engine.next_token_logprobs(ids[: position + 1])
            file = torch.tensor([found[i] for i in range(len(row))])
            torch.testing.assert_close(file, row, atol=0.03, rtol=0.002)


def _adapter(part) -> TrainedAdapter:
    """On every linear inside the layers but a router, large enough to be seen."""
    random = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in part.parameters().items():
        module = part.hf_modules().get(name, "")
        if len(shape) == 2 and ".layers." in name and not name.removesuffix(".weight").endswith(ROUTERS):
            state[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(2, shape[1], generator=random).numpy()
            state[f"{PREFIX}{module}.lora_B.weight"] = (torch.randn(shape[0], 2, generator=random) * 0.05).numpy()
    return TrainedAdapter(LoRA(rank=2, alpha=4.0), state)


def test_a_wrong_file_is_told_from_a_right_one(tokenizer, tmp_path) -> None:
    """What the tolerances above are worth: frequencies that are not stretched are seen."""
    part = CASES["llama-3"].model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = random_model(part)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    plain = part.model_copy(update={"rope_scaling": None})
    path = export_gguf(plain, weights, tokenizer, tmp_path / "x.gguf", "f32")
    with pytest.raises(AssertionError, match="not close"):
        _equal(model, Engine(path, threads=1))


def test_an_adapter_of_some_experts_only_is_refused(tmp_path) -> None:
    part = CASES["qwen3_moe"]
    whole = _adapter(part)
    some = {name: tensor for name, tensor in whole.state.items() if ".experts.3." not in name}
    with pytest.raises(FormatError, match="5 of the 6 experts behind blk.0.ffn_gate_exps.weight.lora_a"):
        export_lora(part, TrainedAdapter(whole.method, some), tmp_path / "lora.gguf")
