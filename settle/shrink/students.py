"""Where a student comes from: its teacher with parts taken out, or a model of a given shape that knows nothing yet."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from settle.base.errors import UsageError
from settle.base.registry import part
from settle.base.settings import read_recipe
from settle.shrink.pruners import Pruned
from settle.shrink.subject import Subject

# field of the architecture → the pruner that makes it smaller
SHRUNK_BY = {
    "num_hidden_layers": "depth",
    "hidden_size": "width",
    "intermediate_size": "channels",
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads",
}
BY_LOSS = 0.5  # share of the blocks up to which each one's going is measured: further down it takes too long


def read_shape(path: Path, subject: Subject) -> dict[str, Any]:
    """A student's shape from TOML: fields of the teacher's `config.json` that shall be other than they are.

    Raises UsageError for a field that the architecture does not have, naming the nearest.
    """
    asked = read_recipe(path)
    known = list(type(subject.part).model_fields)
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{path}: a {subject.part.model_type} has no {name!r}",
                f"did you mean {near[0]!r}?" if near else f"it has {', '.join(SHRUNK_BY)} and more",
            )
    if "vocab_size" in asked and asked["vocab_size"] != subject.part.options().vocab_size:
        raise UsageError(f"{path}: a student reads its teacher's tokens", "leave vocab_size out")
    return {name: value for name, value in asked.items() if getattr(subject.part, name) != value}


def fresh(subject: Subject, shape: Mapping[str, Any], seed: int) -> Pruned:
    """A model of the teacher's family in that shape with first weights. Raises UsageError for an impossible one."""
    made = with_shape(subject, shape)
    made.gguf_metadata()  # what llama.cpp cannot load is refused before anything is learned
    report = {"pruner": "fresh", "shape": dict(shape), "seed": seed}
    return Pruned(Subject.of_decoder(made, made.build(seed), subject.tokenizer), report)


def shrunk(
    subject: Subject, shape: Mapping[str, Any], windows: Sequence[Sequence[int]], texts: Sequence[str]
) -> list[Pruned]:
    """The teacher brought into that shape, one pruner after the other. windows, texts: as `Pruner.prune`.

    Raises UsageError for a field that no pruner makes smaller, or that would grow.
    """
    steps: dict[str, float] = {}
    for name, value in shape.items():
        there = getattr(subject.part, name)
        if name not in SHRUNK_BY or not isinstance(value, int) or value > there:
            raise UsageError(
                f"{name} = {value!r} cannot be had by taking parts out of the teacher, whose {name} is {there!r}",
                "with --fresh a student of any shape begins with weights that know nothing",
            )
        steps[SHRUNK_BY[name]] = 1 - value / there
    made = [Pruned(subject)]
    for name in dict.fromkeys(SHRUNK_BY.values()):
        if name in steps:
            pruner: Any = part("shrink/pruners", name)(**_settings(name, steps[name], subject))
            made.append(pruner.prune(made[-1].subject, windows, texts))
    wrong = {n: getattr(made[-1].subject.part, n) for n, v in shape.items() if getattr(made[-1].subject.part, n) != v}
    if wrong:
        nearest = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        raise UsageError("the teacher cannot be brought into just that shape", f"the nearest has {nearest}")
    return made[1:]


def shorter(subject: Subject, number: int, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> Pruned:
    """The teacher without `number` of its blocks."""
    pruner: Any = part("shrink/pruners", "depth")(**_depth(number, subject.num_layers))
    pruned: Pruned = pruner.prune(subject, windows, texts)
    return pruned


def narrower(subject: Subject, kept: float, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> list[Pruned]:
    """The teacher with that share of its width, and of its feed-forwards' width."""
    made = [Pruned(subject)]
    for name in ("channels", "width"):
        pruner: Any = part("shrink/pruners", name)(share=1 - kept)
        made.append(pruner.prune(made[-1].subject, windows, texts))
    return made[1:]


def with_shape(subject: Subject, shape: Mapping[str, Any]) -> Any:
    """The teacher's architecture in another shape."""
    fields = dict(shape)
    made = subject.part
    if "num_hidden_layers" in fields:
        made = made.shortened(int(fields.pop("num_hidden_layers")))
    return made.with_fields(**fields)


def _settings(name: str, share: float, subject: Subject) -> dict[str, Any]:
    return _depth(round(share * subject.num_layers), subject.num_layers) if name == "depth" else {"share": share}


def _depth(number: int, there: int) -> dict[str, Any]:
    return {"drop": number, "by": "loss" if number <= BY_LOSS * there else "influence"}
