"""Initialises a student: its teacher with parts removed, or an untrained model of a given shape."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.settings import read_toml
from settle.model.architectures import Architecture
from settle.shrink.prunable_model import PrunableModel, complaint
from settle.shrink.pruners import Pruned, Pruner

Shape = Mapping[str, object]  # fields of a teacher's config.json that shall be other than they are


@dataclass(frozen=True)
class PruningWork:
    """How much work pruning may be.

    flops: floating-point operations that each pruner may take; None: as usual. on_progress: called with its name, and
    how many layers it computed of how many; returns whether there is time for more.
    """

    flops: float | None = None
    on_progress: Callable[[str, int, int], bool] = lambda name, done, total: True


def _pruners() -> dict[str, type[Pruner]]:
    """Field of the architecture → the pruner that makes it smaller, in the order in which they are applied."""
    ordered = sorted(Pruner.parts().values(), key=lambda pruner: pruner.order)
    return {name: pruner for pruner in ordered for name in pruner.shrinks}


def read_shape(path: Path, subject: PrunableModel) -> Shape:
    """Read a student's shape from TOML: fields of the teacher's `config.json` that shall be other than they are.

    Raises UsageError for a field that the architecture does not have, naming the nearest.
    """
    fields = read_toml(path)
    known = list(type(subject.part).model_fields)
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{path}: a {subject.part.model_type} has no {name!r}",
                f"did you mean {near[0]!r}?" if near else f"it has {', '.join(_pruners())} and more",
            )
    if "vocab_size" in fields and fields["vocab_size"] != subject.part.options().vocab_size:
        raise UsageError(f"{path}: a student reads its teacher's tokens", "leave vocab_size out")
    return {name: value for name, value in fields.items() if getattr(subject.part, name) != value}


def fresh(subject: PrunableModel, shape: Shape, seed: int) -> Pruned:
    """Initialise a model of the teacher's family in that shape. Raises UsageError for an impossible one."""
    part = with_shape(subject, shape)
    part.gguf_metadata()  # what llama.cpp cannot load is refused before anything is learned
    report = {"pruner": "fresh", "shape": dict(shape), "seed": seed}
    return Pruned(PrunableModel.of_decoder(part, part.build(seed), subject.tokenizer), report)


def shrunk(
    subject: PrunableModel,
    shape: Shape,
    windows: Sequence[Sequence[int]],
    texts: Sequence[str],
    work: PruningWork,
) -> list[Pruned]:
    """Bring the teacher into that shape, one pruner after the other. windows, texts: as `Pruner.prune`.

    Raises UsageError for a field that no pruner makes smaller, or that would grow.
    """
    pruners = _pruners()
    for name, value in shape.items():
        before = getattr(subject.part, name)
        if name not in pruners or not isinstance(value, int) or value > before:
            raise UsageError(
                f"{name} = {value!r} cannot be reached by taking parts out of the teacher, whose {name} is {before!r}",
                "with --fresh a student of any shape starts from random weights",
            )
    steps = [Pruned(subject)]
    wanted = [pruner for pruner in dict.fromkeys(pruners.values()) if any(name in shape for name in pruner.shrinks)]
    for number, pruner in enumerate(wanted, 1):
        fields = {name: int(str(shape[name])) for name in pruner.shrinks if name in shape}
        step = pruner.to_shape(steps[-1].subject, fields).model_copy(update={"step": number < len(wanted)})
        steps.append(_prune(step, steps[-1].subject, windows, texts, work))
    part_made = steps[-1].subject.part
    wrong = {name: getattr(part_made, name) for name, value in shape.items() if getattr(part_made, name) != value}
    if wrong:
        nearest = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        raise UsageError("the teacher cannot be brought into just that shape", f"the nearest has {nearest}")
    return steps[1:]


def shorter(
    subject: PrunableModel, number: int, windows: Sequence[Sequence[int]], texts: Sequence[str], work: PruningWork
) -> Pruned:
    """Return the teacher without `number` of its blocks."""
    return _prune(Pruner.make("depth", {"drop": number}), subject, windows, texts, work)


def narrower(
    subject: PrunableModel,
    share: float,
    windows: Sequence[Sequence[int]],
    texts: Sequence[str],
    work: PruningWork,
) -> list[Pruned]:
    """Return the teacher with about that share of its width, of its feed-forwards' and, where it must be, its heads."""
    o = subject.part.options().layers[0]
    steps: dict[str, Shape] = {"channels": {"share": 1 - share}}
    width = max(1, round(o.width * share))
    if complaint(subject.part.with_fields(hidden_size=width)) and o.heads * o.head_dim == o.width:
        # llama.cpp takes the width for that of the query heads: they go by whole groups, and the width follows
        groups = max(1, round(o.kv_heads * share))
        if groups == o.kv_heads:
            raise UsageError(
                f"{share:.0%} of the width is no whole number of the {o.kv_heads} groups of heads, as llama.cpp needs",
                f"keep {(o.kv_heads - 1) / o.kv_heads:.2f} or less, or drop layers",
            )
        steps = {"heads": {"share": 1 - groups / o.kv_heads, "what": "groups"}, **steps}
        width = groups * o.heads // o.kv_heads * o.head_dim
    results = [Pruned(subject)]
    for name, settings in steps.items():
        pruner = Pruner.make(name, {**settings, "step": True})
        results.append(_prune(pruner, results[-1].subject, windows, texts, work))
    results.append(_prune(Pruner.make("width", {"keep": width}), results[-1].subject, windows, texts, work))
    return results[1:]


def _prune(
    pruner: Pruner, subject: PrunableModel, windows: Sequence[Sequence[int]], texts: Sequence[str], work: PruningWork
) -> Pruned:
    affordable, chosen_windows = pruner.affordable(subject, windows, work.flops)
    name = pruner.part_name()
    return affordable.prune(subject, chosen_windows, texts, lambda done, total: work.on_progress(name, done, total))


def with_shape(subject: PrunableModel, shape: Shape) -> Architecture:
    """Return the teacher's architecture in another shape."""
    fields = dict(shape)
    part = subject.part
    if "num_hidden_layers" in fields:
        part = part.shortened(int(str(fields.pop("num_hidden_layers"))))
    return part.with_fields(**fields)
