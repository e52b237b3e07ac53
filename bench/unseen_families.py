"""A row of bench/results/families.toml: families that settle does not know, and what it says of their models.

    python bench/unseen_families.py [FAMILY ...]     # then python bench/family_tables.py

All classes of transformers that complete text and that settle does not know: tiny models of them, with weights that all
have a say, are saved and opened. What is opened is compared with their class: other logits count as read wrongly. A
refusal counts as near when it names a family from whose code transformers makes the class's own, directly or not; and
where there is none and it says so. So transformers' authors wrote the labels: `modular_*.py` in its folders. None is
left out but those that do not come in that size.
"""

import ast
import datetime
import inspect
import json
import os
import re
import sys
import tempfile
import tomllib
import warnings
from functools import cache
from pathlib import Path

import tomli_w
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from settle.base.errors import SettleError
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.model.families import families, family_of
from settle.model.pretrained import Pretrained

ROWS = Path(__file__).parents[1] / "bench/results/families.toml"
MODELS = Path(transformers.__file__).parent / "models"
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
# further ones, where a class has them: of experts, latent attention, state spaces
FURTHER = {
    "moe_intermediate_size": 16, "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "shared_expert_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "state_size": 8,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "num_heads": 8,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "d_model": 32, "n_layers": 2, "n_heads": 4,
}  # fmt: skip
TEXT = 180  # tokens
MOST = 40e6  # parameters
FOLDERS = {"apertus1p5_text": "apertus1p5", "llama4_text": "llama4", "aria_text": "aria"}


@cache
def parents(folder: str) -> frozenset[str]:
    """Return the folders of transformers from which a folder's code is made, directly or not."""
    path = MODELS / folder / f"modular_{folder}.py"
    if not path.exists():
        return frozenset()
    direct = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and ".modeling_" in f".{node.module}":
            direct.add(str(node.module).split(".")[0])
    return frozenset(direct.union(*map(parents, direct - {folder})))


def near(family: str) -> set[str]:
    """Return the label: the known families whose code a class is made from."""
    folder = next((f for f in (FOLDERS.get(family, family), family.removesuffix("_text")) if (MODELS / f).is_dir()), "")
    return {known for known in families() if {known, known.removesuffix("_text")} & parents(folder)}


def saved(family: str, folder: Path, tokenizer: ByteBpeTokenizer) -> torch.nn.Module:
    """Save a tiny random model of a family as Hugging Face's files."""
    known = AutoConfig.for_model(family).to_dict()
    further = {key: size for key, size in FURTHER.items() if key in known}
    fixed = {"head_dim"} if isinstance(getattr(type(AutoConfig.for_model(family)), "head_dim", None), property) else {}
    config = AutoConfig.for_model(family, **{k: size for k, size in SIZES.items() if k not in fixed}, **further)
    torch.manual_seed(0)
    with torch.device("meta"):
        number = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if number > MOST:
        raise ValueError(f"{number / 1e6:,.0f} M parameters")
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * (0.2 if weight.ndim == 1 else weight.shape[-1] ** -0.5))
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model.eval()


def outcome(family: str, folder: Path, tokenizer: ByteBpeTokenizer) -> tuple[str, str]:
    """Return read, near, far, wrong or not built, and what is said."""
    try:
        theirs = saved(family, folder, tokenizer)
    except Exception as e:  # noqa: BLE001  whatever a class makes of sizes that it was not made for
        return "not built", str(e).splitlines()[0][:100] if str(e) else type(e).__name__
    try:
        opened = Pretrained.open(folder)
    except SettleError as e:
        named = re.search(r"the nearest one is (\w+)", e.what)
        label = near(family)
        is_near = named[1] in label if named else not label
        return ("near" if is_near else "far"), f"label {sorted(label)}: {e.what}"
    text = torch.randint(0, SIZES["vocab_size"], (TEXT,), generator=torch.Generator().manual_seed(7))
    ours = opened.load().eval()
    with torch.no_grad():
        wanted = theirs(text[None], use_cache=False).logits[0]
        found = ours.logits(ours(text, torch.tensor([0, TEXT], dtype=torch.int32)))
    off = float((found - wanted).abs().max() / wanted.std())
    return ("read" if off < 1e-3 else "wrong"), f"as {opened.part.model_type}; {off:.0e} off"


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    unknown = [family for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if family_of(family) is None]
    found = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ["SETTLE_HOME"] = home
        tokenizer = ByteBpeTokenizer.train([inspect.getsource(json)], SIZES["vocab_size"], Path(home) / "tokenizer")
        for family in names or unknown:
            with tempfile.TemporaryDirectory() as folder:
                found[family] = outcome(family, Path(folder), tokenizer)
            print(family, *found[family], flush=True)
    if not names:
        write(found)


def write(found: dict[str, tuple[str, str]]) -> None:
    """Write the row of what was found of all families."""
    of = {kind: [f for f, (k, _) in found.items() if k == kind] for kind in ("read", "near", "far", "wrong")}
    refused, tried = len(of["near"] + of["far"]), sum(map(len, of.values()))
    row = {
        "id": "families-unseen",
        "claim": "An unknown family is refused with a near one, or rightly none; none is read wrongly.",
        "figure": f"{len(of['near'])} of {refused} refusals name a near one, or rightly none: "
        f"{len(of['near']) / refused:.0%}".replace("%", " %")
        + f"; read {len(of['read'])}, wrongly {len(of['wrong'])}",
        "bar": "none wrong; 80 % of refusals near",
        "met": not of["wrong"] and len(of["near"]) >= 0.8 * refused,
        "judged_on": f"tiny random models of {tried} of transformers' {len(found)} unknown classes, those that come in "
        "that size; labels by the code that transformers makes a class from",
        "command": "bench/unseen_families.py",
        "date": datetime.date.today().isoformat(),
    }
    kept = [r for r in tomllib.loads(ROWS.read_text(encoding="utf-8"))["row"] if r["id"] != row["id"]]
    ROWS.write_text("\n".join(tomli_w.dumps({"row": [one]}) for one in [*kept, row]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
