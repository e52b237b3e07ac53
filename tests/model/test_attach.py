"""An adapter that peft made computes here what it computes there."""

from importlib import import_module

import pytest
import torch
from transformers import AutoModelForCausalLM

from settle.base.errors import FormatError
from settle.formats.safetensors import export_safetensors
from settle.model.load_adapter import adapted, attach, open_adapter
from settle.model.pretrained import Pretrained
from tests.trained import adapter, trained

# peft asks transformers for something that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(3, 40)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tiny = trained()
    return export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path_factory.mktemp("base") / "tiny")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"up_proj": 3}},
        {"target_modules": "all-linear", "use_dora": True},
    ],
)
def test_equal_logits(base, tmp_path, settings):
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    peft = import_module("peft")  # here: it takes seconds, and every worker collects this file
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    theirs = peft.get_peft_model(theirs, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = adapted(Pretrained.open(base), open_adapter(tmp_path))
    with torch.no_grad():
        expected = theirs(IDS[None]).logits[0]
        found = ours.logits(ours(IDS, torch.tensor([0, len(IDS)], dtype=torch.int32)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_shape(base, tmp_path):
    tiny = trained()
    wide = tiny.part.model_copy(update={"intermediate_size": 96})
    with pytest.raises(FormatError, match="has the shape"):
        attach(tiny.part.build(0), adapter(wide))
