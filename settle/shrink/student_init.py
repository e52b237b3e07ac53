"""Where a student comes from: its teacher with parts taken out, or a model of a given shape that knows nothing yet."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from settle.base.errors import FormatError, UsageError
from settle.base.settings import read_toml
from settle.shrink.prunable_model import Subject
from settle.shrink.pruners import Pruned, Pruner

# field of the architecture → the pruner that makes it smaller
SHRUNK_BY = {
    "num_hidden_layers": "depth",
    "hidden_size": "width",
    "intermediate_size": "channels",
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads",
}
SEARCH_FLOPS = 2e13  # that looking for blocks by what their going costs may take: minutes on a few cores
LEAST_SEEN, LEAST_ROW = 512, 64  # tokens that such a search needs to see, and of each row


def read_shape(path: Path, subject: Subject) -> dict[str, Any]:
    """A student's shape from TOML: fields of the teacher's `config.json` that shall be other than they are.

    Raises UsageError for a field that the architecture does not have, naming the nearest.
    """
    asked = read_toml(path)
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
    for name, value in shape.items():
        there = getattr(subject.part, name)
        if name not in SHRUNK_BY or not isinstance(value, int) or value > there:
            raise UsageError(
                f"{name} = {value!r} cannot be had by taking parts out of the teacher, whose {name} is {there!r}",
                "with --fresh a student of any shape begins with weights that know nothing",
            )
    wanted = [name for name in dict.fromkeys(SHRUNK_BY.values()) if any(SHRUNK_BY[field] == name for field in shape)]
    made = _one_by_one(subject, {name: _settings(name, shape, subject) for name in wanted}, windows, texts)
    part_made = made[-1].subject.part
    wrong = {name: getattr(part_made, name) for name, value in shape.items() if getattr(part_made, name) != value}
    if wrong:
        nearest = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        raise UsageError("the teacher cannot be brought into just that shape", f"the nearest has {nearest}")
    return made


def shorter(subject: Subject, number: int, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> Pruned:
    """The teacher without `number` of its blocks."""
    return _one_by_one(subject, {"depth": {"drop": number}}, windows, texts)[0]


def narrower(subject: Subject, kept: float, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> list[Pruned]:
    """The teacher with about that share of its width, of its feed-forwards' and, where it must be, of its heads."""
    o = subject.part.options().layers[0]
    steps: dict[str, dict[str, Any]] = {"channels": {"share": 1 - kept}}
    width = max(1, round(o.width * kept))
    if not _loadable(subject.part.with_fields(hidden_size=width)) and o.heads * o.head_dim == o.width:
        # llama.cpp takes the width for that of the query heads: they go by whole groups, and the width follows
        groups = max(1, round(o.kv_heads * kept))
        if groups == o.kv_heads:
            raise UsageError(
                f"{kept:.0%} of the width is no whole number of {o.kv_heads} groups of heads, and llama.cpp needs that",
                f"keep {(o.kv_heads - 1) / o.kv_heads:.2f} or less, or drop layers",
            )
        steps = {"heads": {"share": 1 - groups / o.kv_heads, "what": "groups"}, **steps}
        width = groups * o.heads // o.kv_heads * o.head_dim
    return _one_by_one(subject, {**steps, "width": {"keep": width}}, windows, texts)


def _loadable(part: Any) -> bool:
    try:
        part.gguf_metadata()
    except FormatError:
        return False
    return True


def _one_by_one(
    subject: Subject,
    steps: Mapping[str, Mapping[str, Any]],
    windows: Sequence[Sequence[int]],
    texts: Sequence[str],
) -> list[Pruned]:
    """steps: pruner → its settings; only what comes of the last must be loadable."""
    made = [Pruned(subject)]
    for number, (name, settings) in enumerate(steps.items(), 1):
        subject, seen = made[-1].subject, windows
        if name == "depth":
            seen = _searched(subject, settings["drop"], windows)
            settings = {**settings, "by": "loss" if seen else "influence"}
        pruner = Pruner.make(name, {**settings, "step": number < len(steps)})
        made.append(pruner.prune(subject, seen or windows, texts))
    return made[1:]


def _searched(subject: Subject, drop: int, windows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """As much of the windows as a search by loss has time for; none where that is too little to tell anything.

    Each block that goes is found by leaving out each one that is there, and computing the blocks behind it again.
    """
    there, numbers = subject.num_layers, subject.part.num_non_embedding_parameters
    room = int(SEARCH_FLOPS / (drop * there * numbers))
    if room < LEAST_SEEN:
        return []
    each = max(LEAST_ROW, room // len(windows))
    return [window[:each] for window in windows[: max(1, room // each)]]


def with_shape(subject: Subject, shape: Mapping[str, Any]) -> Any:
    """The teacher's architecture in another shape."""
    fields = dict(shape)
    made = subject.part
    if "num_hidden_layers" in fields:
        made = made.shortened(int(fields.pop("num_hidden_layers")))
    return made.with_fields(**fields)


def _settings(name: str, shape: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Of the pruner that brings its fields of the shape about."""
    own = {field: int(value) for field, value in shape.items() if SHRUNK_BY[field] == name}
    if name == "depth":
        return {"drop": subject.num_layers - own["num_hidden_layers"]}
    if name == "heads":
        field = "num_key_value_heads" if "num_key_value_heads" in own else "num_attention_heads"
        what = "groups" if field == "num_key_value_heads" else "queries"
        return {"share": 1 - own[field] / getattr(subject.part, field), "what": what}
    return {"keep": next(iter(own.values()))}
