"""Folders of compressed-tensors: what transformers reads is what the GGUF file holds; a broken folder is refused."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from settle.base.errors import FormatError, GateError, UsageError
from settle.base.event_log import Events
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.safetensors import read_safetensors
from settle.infer.live_sampling import logprobs
from settle.model.architectures import Architecture
from settle.model.pretrained import Pretrained
from settle.shrink.types import ggml, w4a16
from settle.shrink.types.quantize_file import quantize_gguf
from tests.model.architectures.cases import BEYOND_GGUF, CASES, each, random_model
from tests.trained import trained

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp_py_sync") is None, reason="without the extra `shrink`"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
REFUSED = {"falcon_h1": "multipliers", "gemma3n_text": "several matrices in one tensor"} | {
    name: "experts" for name, part in CASES.items() if part.experts(1)
}
IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Return a function of an architecture: its random model as a GGUF file in Q4_0."""
    tokenizer = trained().tokenizer

    def make(part, dtype="f16"):
        folder = tmp_path_factory.mktemp("model")
        part = part.model_copy(update={"vocab_size": tokenizer.vocab_size})
        weights = {n: p.detach().half().float() for n, p in random_model(part).named_parameters()}
        source = export_gguf(part, weights, tokenizer, folder / "source.gguf", dtype)
        kinds = w4a16.packable(part, read_gguf(source))
        return Pretrained.open(quantize_gguf(source, folder / "small.gguf", kinds, short_scales=True))

    return make


@pytest.mark.parametrize("family", each(sorted(set(Architecture.parts()) - BEYOND_GGUF)))
def test_transformers_reads_what_the_file_holds(family, quantized, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    if family in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[family]):
            quantized(CASES[family])
        return
    model = quantized(CASES[family])
    folder = w4a16.pack(model, tmp_path / family, "f16")
    assert w4a16.require_equal(folder, model, "f16") > 3
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        found = theirs(torch.tensor([IDS])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, logprobs(model.load(), IDS, range(len(IDS))), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "phi3"])  # phi3's files join the rows of two matrices
def test_a_folder_is_opened_again_with_its_blocks(family, quantized, tmp_path) -> None:
    model = quantized(CASES[family])
    opened = Pretrained.open(w4a16.pack(model, tmp_path / family, "bf16"))
    assert opened.part.options() == model.part.options() and opened.kinds["Q4_0"] == model.kinds["Q4_0"]
    for name in model.stored:
        if model.stored[name].tensor.dtype == "Q4_0":
            assert torch.equal(opened.read(name), model.read(name)) and torch.equal(
                opened.blocks(name), model.blocks(name)
            )
    wanted = logprobs(model.load(quantize="as-is"), IDS, range(len(IDS)))
    found = logprobs(opened.load(quantize="as-is"), IDS, range(len(IDS)))
    assert (wanted.exp() * (wanted - found)).sum(-1).mean() < 1e-3  # vectors and tables were rounded to bfloat16


@pytest.mark.parametrize(
    "change, name",
    [
        ({"format": "float-quantized", "weights": {"num_bits": 8, "type": "float"}}, r"float-quantized W8A16 \(float"),
        ({"weights": {"symmetric": False}}, "in a group, asymmetric"),
        ({"weights": {"actorder": "group"}}, "ordered by group"),
        ({"input_activations": {"num_bits": 8}}, "W4A8"),
    ],
)
def test_another_scheme_is_refused_by_its_name(change, name, quantized, tmp_path) -> None:
    folder = w4a16.pack(quantized(CASES["llama"]), tmp_path / "model", "bf16")
    config = json.loads((folder / "config.json").read_text())
    scheme = config["quantization_config"]["config_groups"]["group_0"]
    weights = scheme["weights"] | change.get("weights", {})
    scheme |= change | {"weights": weights}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=f"compressed-tensors scheme, .*{name}"):
        Pretrained.open(folder)


def test_scales_that_no_block_can_hold_are_refused(quantized, tmp_path) -> None:
    folder = w4a16.pack(quantized(CASES["llama"]), tmp_path / "model", "bf16")
    _change(folder, "model.layers.0.mlp.up_proj.weight_scale", lambda raw: np.full_like(raw, 0x7E))
    with pytest.raises(FormatError, match="mlp.up_proj.weight has scales that float16 cannot hold"):
        Pretrained.open(folder).read("model.layers.0.mlp.up_proj.weight")


def test_short_scales_are_exact_in_both_and_round_no_worse() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((64, 96)).astype(np.float32)
    values[0] = 0
    weights = random.random(96).astype(np.float32)
    raw = ggml.quantize(values, "Q4_0", weights)
    errors = []
    for _ in range(2):
        numbers = ggml.dequantize(raw.copy(), "Q4_0", np.empty_like(values))
        errors.append(float((weights * (numbers - values) ** 2).sum()))
        ggml.shorten_scales(values, raw, weights)
    scales = torch.from_numpy(raw.reshape(-1, 18)[:, :2].copy()).view(torch.float16)
    assert torch.equal(scales.bfloat16().half(), scales) and (scales < 0).any()
    assert errors[1] < errors[0]


def test_columns_in_another_order_are_refused(quantized, monkeypatch) -> None:
    odd = CASES["qwen3_5_text"]
    monkeypatch.setattr(type(odd), "column_run", lambda self, name: 16 * name.endswith("linear_attn.out_proj.weight"))
    with pytest.raises(UsageError, match="orders the inputs of blk.0.ssm_out.weight otherwise"):
        quantized(odd)


def _negative_scales(folder) -> None:
    _change(folder, "model.layers.0.mlp.up_proj.weight_scale", lambda raw: raw & 0x7F)


def _swapped_codes(folder) -> None:
    _change(folder, "model.layers.1.self_attn.q_proj.weight_packed", lambda raw: raw << 4 | raw >> 4)


def _another_group(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))


def _another_template(folder) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer_config.json").write_text("{}")


def _change(folder, name, change) -> None:
    place = read_safetensors(folder / "model.safetensors").tensors[name].place
    raw = np.frombuffer((folder / "model.safetensors").read_bytes(), np.uint8).copy()
    raw[place.start : place.start + place.num_bytes] = change(raw[place.start : place.start + place.num_bytes])
    (folder / "model.safetensors").write_bytes(raw.tobytes())


@pytest.mark.parametrize("break_it", [_negative_scales, _swapped_codes, _another_group, _another_template])
def test_a_broken_folder_is_refused(break_it, quantized, tmp_path, monkeypatch) -> None:
    model, pack = quantized(CASES["llama"]), w4a16.pack

    def broken(*arguments):
        break_it(pack(*arguments))

    monkeypatch.setattr(w4a16, "pack", broken)
    with pytest.raises(GateError, match="(numbers|config.json|tokenizer) of"):
        w4a16.packed_through_gate(model, tmp_path / "out", "bf16", [], Events())
    assert not list(tmp_path.iterdir())


def test_transformers_refuses_what_answers_otherwise(quantized, tmp_path, monkeypatch) -> None:
    for package in w4a16.READERS:
        pytest.importorskip(package)
    model, pack = quantized(CASES["llama"]), w4a16.pack
    monkeypatch.setattr(w4a16, "pack", lambda *arguments: _negative_scales(pack(*arguments)))
    monkeypatch.setattr(w4a16, "require_equal", lambda *arguments: 0)
    with pytest.raises(GateError, match="does not answer in transformers as the file does"):
        w4a16.packed_through_gate(model, tmp_path / "out", "bf16", [], Events())
    assert not list(tmp_path.iterdir())
