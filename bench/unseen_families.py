"""A row of bench/results/families.toml: families that settle does not know, and what it says of them.

    python bench/unseen_families.py     # then python bench/family_tables.py

Tiny random models of transformers' own classes are saved and opened: a wrong one is opened and computes other logits,
another one is refused, and names a near family. `NEAR` has the families that count as near, named before the look at
the last line's (from glm on); none where settle has no family of that kind.
"""

import datetime
import re
import tempfile
import tomllib
import warnings
from pathlib import Path

import tomli_w
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from settle.base.errors import FormatError
from settle.model.pretrained import Pretrained

ROWS = Path(__file__).parents[1] / "bench/results/families.toml"
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
NEAR = {
    "phi": "stablelm gpt_neox starcoder2", "arcee": "llama", "helium": "llama", "nemotron": "stablelm starcoder2",
    "persimmon": "gpt_neox stablelm", "exaone4": "olmo2 olmo3 qwen3", "hunyuan_v1_dense": "llama qwen3",
    "apertus": "llama qwen3 olmo2", "bloom": "none gpt_neox", "opt": "none", "gptj": "none gpt_neox", "mpt": "none",
    "cohere2": "cohere", "olmoe": "qwen3_moe olmo2", "qwen2_moe": "qwen3_moe qwen2", "mixtral": "qwen3_moe mistral",
    "phimoe": "qwen3_moe stablelm", "codegen": "none", "gpt2": "none",
    "glm": "glm4", "ministral": "mistral llama", "cwm": "llama mistral", "vaultgemma": "gemma2 gemma", "doge": "qwen3",
    "diffllama": "llama", "jais2": "starcoder2 stablelm", "ernie4_5_moe": "ernie4_5 qwen3_moe",
    "glm4_moe": "qwen3_moe glm4", "hunyuan_v1_moe": "qwen3_moe llama qwen3", "gpt_bigcode": "none gpt_neox starcoder2",
    "falcon": "none gpt_neox", "xglm": "none",
}  # fmt: skip


def saved(family: str, folder: Path) -> torch.nn.Module:
    """Save a tiny random model of a family as Hugging Face's files. Sizes that its class does not take keep."""
    known = AutoConfig.for_model(family).to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known or family != "falcon"}
    config = AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


def outcome(family: str, folder: Path) -> tuple[str, str]:
    """Return read, near, far or wrong, and what is said."""
    try:
        saved(family, folder)
    except (AssertionError, AttributeError, TypeError, ValueError) as e:
        return "not built", str(e).splitlines()[0][:100]
    try:
        Pretrained.open(folder)
    except FormatError as e:
        found = re.search(r"the nearest one is (\w+)", e.what)
        return "near" if (found[1] if found else "none") in NEAR[family].split() else "far", e.what
    return "wrong", "it is opened"


def main() -> None:
    warnings.simplefilter("ignore")
    found = {}
    for family in NEAR:
        with tempfile.TemporaryDirectory() as folder:
            found[family] = outcome(family, Path(folder))
        print(family, *found[family], flush=True)
    kinds = [kind for kind, _ in found.values() if kind != "not built"]
    far = ", ".join(family for family, (kind, _) in found.items() if kind == "far")
    row = {
        "id": "families-unseen",
        "claim": "An unknown family is refused with the nearest known one, and none is loaded wrongly.",
        "figure": f"{kinds.count('near')} of {len(kinds)} with a near one; loaded wrongly {kinds.count('wrong')}; "
        f"read without a row 0; another one named for: {far or 'none'}",
        "bar": "none wrong; 80 % near",
        "met": "wrong" not in kinds and kinds.count("near") >= 0.8 * len(kinds),
        "judged_on": f"tiny random models of {len(kinds)} of transformers' classes; half were looked at before",
        "command": "bench/unseen_families.py",
        "date": datetime.date.today().isoformat(),
    }
    kept = [r for r in tomllib.loads(ROWS.read_text(encoding="utf-8"))["row"] if r["id"] != row["id"]]
    ROWS.write_text("\n".join(tomli_w.dumps({"row": [one]}) for one in [*kept, row]), encoding="utf-8")


if __name__ == "__main__":
    main()
