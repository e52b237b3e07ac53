"""What to try instead of an unknown command or option: names that other tools use, then names that are near."""

import difflib
from collections.abc import Iterable

NEAR = 0.72  # similarity (difflib's ratio) from which a name is taken for a misspelling
# commands of other tools → what does it here
COMMANDS = {
    "run": "`settle chat MODEL` talks to a model",
    "generate": "`settle chat MODEL PROMPT` answers once",
    "list": "`settle models` lists models, `settle runs` runs",
    "ls": "`settle models` lists models, `settle runs` runs",
    "ps": "`settle models` lists models, `settle runs` runs",
    "rm": "`settle models remove NAME` or `settle runs remove NAME`",
    "remove": "`settle models remove NAME` or `settle runs remove NAME`",
    "delete": "`settle models remove NAME` or `settle runs remove NAME`",
    "clean": "`settle runs prune` deletes checkpoints that nothing needs",
    "show": "`settle runs show NAME` or `settle models show NAME`",
    "download": "`settle pull NAME` gets a model",
    "finetune": "`settle tune MODEL FILES` fine-tunes a model",
    "lora": "`settle tune MODEL FILES` trains a LoRA by default",
    "sft": "`settle tune MODEL FILES` fine-tunes on examples",
    "dpo": "`settle tune MODEL PAIRS` with rows of chosen and rejected answers",
    "merge": "`settle export NAME` merges an adapter",
    "fuse": "`settle export NAME` merges an adapter",
    "convert": "`settle export NAME --to FORMAT` converts",
    "quantize": "`settle shrink MODEL --to Q4_K_M` quantizes",
    "benchmark": "`settle eval NAME` measures the answers, `settle models NAME --measure` their speed",
    "bench": "bench/serve_overhead.py, in a clone of the source, measures what the server costs",
    "fit": "`settle models fit` shows which models fit this machine",
    "audit": "`settle runs audit NAME` shows every connection of a run",
    "votes": "`settle chat --votes` shows them, `settle chat --vote ID=a` votes",
    "lessons": "`settle doctor MODEL --lesson all` shows them on your model",
    "prove-scale": "`settle train INPUTS --prove-scale 1,2,3,4`",
    "help": "`settle --help` lists the commands",
    "version": "`settle --version`",
}
# options of other tools → the options that could do it here, in the order to try them
OPTIONS = {
    "lr": ("--optimizer.lr",),
    "learning-rate": ("--optimizer.lr",),
    "weight-decay": ("--optimizer.weight-decay",),
    "optim": ("--optimizer",),
    "rank": ("--adapter.rank",),
    "lora-r": ("--adapter.rank",),
    "lora-rank": ("--adapter.rank",),
    "lora-alpha": ("--adapter.alpha",),
    "lora-target": ("--adapter.targets",),
    "lora-target-modules": ("--adapter.targets",),
    "qlora": ("--quantize nf4",),
    "load-in-4bit": ("--quantize nf4",),
    "batch-size": ("--batch-rows", "--batch-tokens"),
    "per-device-train-batch-size": ("--batch-rows", "--batch-tokens"),
    "max-seq-length": ("--rows.max-tokens", "--context"),
    "max-seq-len": ("--rows.max-tokens", "--context"),
    "max-length": ("--rows.max-tokens", "--context", "--max-tokens"),
    "cutoff-len": ("--rows.max-tokens", "--context"),
    "ctx-size": ("--context",),
    "n-ctx": ("--context",),
    "num-epochs": ("--epochs",),
    "num-train-epochs": ("--epochs",),
    "epochs": ("--epochs", "--tokens"),
    "max-steps": ("--steps",),
    "iters": ("--steps",),
    "max-time": ("--time",),
    "dry-run": ("--dry",),
    "output-dir": ("--out", "--name"),
    "output": ("--out", "--name"),
    "o": ("--out", "--name"),
    "gradient-checkpointing": ("--recompute",),
    "fp16": ("--dtype float16",),
    "bf16": ("--dtype bfloat16",),
    "precision": ("--dtype",),
    "val-split": ("--rows.held-out", "--data.held-out"),
    "val-size": ("--rows.held-out", "--data.held-out"),
    "config": ("--recipe",),
    "temp": ("--temperature",),
    "quiet": ("--json",),
}
# options of other commands → why this one has none
ELSEWHERE = {"time": "leave it out: how much work this is follows from what is asked for, and Ctrl-C ends it"}


def suggest_command(name: str, known: Iterable[str]) -> str:
    """How to fix the unknown command `name`."""
    if name.lower() in COMMANDS:
        return COMMANDS[name.lower()]
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=NEAR)
    return f"did you mean {near[0]!r}?" if near else "`settle --help` lists the commands"


def suggest_option(option: str, known: Iterable[str], command: str) -> str:
    """Say how to fix the unknown option `option` of `command`.

    known: the options it has; those of a part are known by the option that chooses the part.
    """
    options = set(known)
    name = option.lstrip("-").replace("_", "-").lower()
    for ours in OPTIONS.get(name, ()):
        if ours.partition(" ")[0].partition(".")[0] in options:
            return f"{ours} is its name here"
    if name in ELSEWHERE and f"--{name}" not in options:
        return ELSEWHERE[name]
    near = difflib.get_close_matches(f"--{name}", sorted(options), n=1, cutoff=NEAR)
    return f"did you mean {near[0]!r}?" if near else f"`settle {command} --help-all` lists every option"
