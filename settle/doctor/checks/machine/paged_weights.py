"""Weights go out of memory and come back from the disk for every token, as they do not fit beside the context."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.likelihood import reader_of
from settle.doctor.model_files import other_files
from settle.doctor.resources import (
    KEPT,
    Pace,
    PagedTime,
    ResourceCheck,
    fitting_tokens,
    held_bytes,
    load_of,
    memory_pressure,
    needed_bytes,
    pace,
    room_of,
    running,
)
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Trial
from settle.formats.gguf import read_gguf
from settle.infer.child_process import Load
from settle.machine import bandwidth, read_from_disk
from settle.plan.fit.model_shapes import NamedShape, shape_of_file

LEAST_SHARE = 0.1  # of the file, that is read from the disk for each token: less is what was never read before
MEASURED_BYTES = 1 << 30  # of a file that a look loads once more; of a larger one its size says enough
LOOKED = 3  # tokens that a look writes


class Paging(Details):
    """The context and the bytes of room of a model, and the one thing to change: a shorter context, or another file."""

    context: int
    room: int
    tokens: int = 0  # of a context that leaves the weights in memory
    other: str | None = None  # a smaller file of the same model


class PagedWeights(ResourceCheck[Paging]):
    """A model with its context should stay in memory as a whole."""

    number: ClassVar[int] = 4
    symptom: ClassVar[str] = "seconds or minutes for each token, while the disk is busy"
    seconds: ClassVar[float] = 1.5

    def detect(self, subject: ModelFile) -> Iterator[Finding[Paging]]:
        load, room = load_of(subject), room_of(subject)
        named = shape_of_file(load.path, subject.model.name)
        size = load.path.stat().st_size
        if held_bytes(named, load.context) > room:
            return  # it would not load at all, which is another check's
        needed = needed_bytes(named, load.context)
        measured = _measured(subject, load, room, fits=needed <= room, size=size)
        if (measured is None and needed <= room) or (measured and measured.read < LEAST_SHARE * size):
            return
        what = f"the weights do not stay in memory beside a context of {load.context:,} tokens"
        if needed <= room:
            what = "other programs push the weights out of memory"
        evidence = [f"in {memory_pressure() or 0:.0%} of the last ten seconds something waited for memory"]
        if needed > room:
            evidence = [f"they take about {needed / 1e9:.2f} GB together, and {room / 1e9:.2f} GB are free"]
        if measured:
            token, weights = f"{measured.seconds:.2g} s", f"{size / bandwidth():.2g} s"
            evidence += [
                f"for each token {measured.read / 1e6:,.0f} of {size / 1e6:,.0f} MB are read from the disk again",
                f"a token takes {token}, and memory would give its weights in {weights}",
            ]
        details = _knob(subject, named, load.context, room)
        yield self.finding(what, *evidence, strength=0.95 if measured else 0.8, details=details)

    def trial(self, finding: Finding[Paging], subject: ModelFile, folder: Path) -> Trial | None:
        found, asked = finding.details, replace(load_of(subject), room=finding.details.room)
        changed = _changed(asked, found)
        if changed == asked:
            return None
        knob = f"{found.other} in its place" if found.other else f"a context of {changed.context:,} tokens"
        seconds = 1.5 + asked.path.stat().st_size / 2e8
        return self.speed_trial(knob, PagedTime("as it is", asked), PagedTime("changed", changed), seconds, apart=True)

    def fix(self, finding: Finding[Paging], subject: ModelFile) -> Fix:
        if finding.details.tokens:
            return self.shorter(subject, finding.details.tokens)
        if finding.details.other:
            return Fix("use the smaller file", f"settle chat {finding.details.other}")
        return Fix("take a smaller file, or end other programs", f"settle shrink {subject.name}")


def _measured(subject: ModelFile, load: Load, room: int, fits: bool, size: int) -> Pace | None:
    """Return what a token takes, by the reader of the look where it should fit, else within that much memory.

    None where loading it once more takes too long.
    """
    if fits:
        with reader_of(subject.model) as reader:
            before, answer = read_from_disk(reader.engine.pid), reader.engine.timed("Once", LOOKED)
            written = max(1, len(answer.ids))
            return Pace(answer.seconds / written, (read_from_disk(reader.engine.pid) - before) / (written + 1))
    if size > MEASURED_BYTES:
        return None
    with running(replace(load, room=room)) as child:
        return pace(child, "Once", LOOKED)


def _knob(subject: ModelFile, named: NamedShape, context: int, room: int) -> Paging:
    """Return the one thing to change: a shorter context, else a smaller file of the same model that is here."""
    path = subject.model.weights
    tokens = fitting_tokens(named, context, room)
    if tokens:
        return Paging(context=context, room=room, tokens=tokens if tokens < context else 0, other=None)
    files = [shape_of_file(other, str(other)) for other in other_files(path, read_gguf(path))]
    smaller = [file.name for file in files if needed_bytes(file, context) <= KEPT * room]
    return Paging(context=context, room=room, tokens=0, other=smaller[0] if smaller else None)


def _changed(asked: Load, found: Paging) -> Load:
    if found.tokens:
        return replace(asked, context=found.tokens)
    return replace(asked, path=Path(found.other)) if found.other else asked
