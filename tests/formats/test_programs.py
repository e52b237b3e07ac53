"""Exports of every family in the programs that load them: peft's adapters, mlx-lm's folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from settle.formats.peft import export_peft
from settle.formats.safetensors import export_safetensors
from settle.model.adapters.lora import LoRA
from settle.model.families import families
from settle.model.load_adapter import TrainedAdapter
from tests.model.adapters.test_adapters import stir
from tests.model.architectures.cases import CASES, STAND_INS, random_model
from tests.trained import Trained

FAMILIES = families()
IDS = torch.arange(3, 25)
WINDOW = 8  # of the tiny models that have one
MLX_IGNORES_WINDOWS = {"mistral", "gemma2"}  # its attention reads the whole text there
# it has Gemma 3n and Qwen3.5 inside a multimodal model only, and reads gpt-oss's experts in MXFP4 only
MLX_LACKS = dict.fromkeys(("gemma3n_text", "qwen3_5_text", "qwen3_5_moe_text"), "not supported") | {
    "gpt_oss": "parameters not in model"
}
MLX_CANNOT = {"olmo"}  # it wants a library of its own and ends the process
MLX_LEAVES_OUT = {"falcon_h1": {"attention_in_multiplier": 1.0, "key_multiplier": 1.0}}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # peft names the experts' matrices, which transformers keeps as one parameter, once more by that parameter
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]


def _bounds(ids: Tensor) -> Tensor:
    return torch.tensor([0, len(ids)], dtype=torch.int32)


def _theirs(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@pytest.mark.parametrize("case", [case for case, part in CASES.items() if part.model_type not in STAND_INS])
def test_peft_adds_an_adapter_of_every_family(case: str, tiny: Trained, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    part = CASES[case]
    model = random_model(part)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    folder = export_safetensors(part, weights, tiny.tokenizer, tmp_path / "base", "f32")
    method = LoRA(rank=4)
    method.apply(model)
    stir(model)
    export_peft(part, TrainedAdapter.of_model(model, method, "x", "ab" * 32), tmp_path / "adapter")
    with torch.no_grad():
        ours = model.logits(model(IDS, _bounds(IDS)))
        before = _theirs(folder)(IDS[None]).logits[0]
        theirs = peft.PeftModel.from_pretrained(_theirs(folder), tmp_path / "adapter")(IDS[None]).logits[0]
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-3)
    assert (theirs - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MLX_CANNOT])
def test_mlx_lm_reads_a_folder_of_every_family_that_it_has(family: str, tiny: Trained, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx has no wheel for this machine")
    part = FAMILIES[family].TINY.model_copy(update=MLX_LEAVES_OUT.get(family, {}))
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model = random_model(part)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    folder = export_safetensors(part, weights, tiny.tokenizer, tmp_path / "mlx", "f32", {"format": "mlx"})
    if family in MLX_LACKS:
        with pytest.raises(ValueError, match=MLX_LACKS[family]):
            load_model(folder)
        return
    loaded = load_model(folder)[0]
    theirs = np.array(loaded(mx.array([IDS.tolist()]))[0].astype(mx.float32))
    with torch.no_grad():
        ours = model.logits(model(IDS, _bounds(IDS))).numpy()
        greedy = IDS[:2]
        for _ in range(WINDOW - 2):
            greedy = torch.cat((greedy, model.logits(model(greedy, _bounds(greedy)))[-1].argmax()[None]))
    written = [token for token, _ in generate_step(mx.array(IDS[:2].tolist()), loaded, max_tokens=WINDOW - 2)]
    error = np.abs(theirs - ours).max(-1) / ours.std()
    window = WINDOW if family in MLX_IGNORES_WINDOWS else len(IDS)
    assert error[:window].max() < 2e-3
    assert (error.max() > 0.1) == (family in MLX_IGNORES_WINDOWS)
    assert written == greedy[2:].tolist()
