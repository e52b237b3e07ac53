"""Weights go out of memory and come back from the disk for every token, as they do not fit beside the context."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.likelihood import reader_of
from settle.doctor.resources.disk_reads import Pace, TokenTime, memory_pressure, pace, running
from settle.doctor.resources.model_memory import (
    KEPT,
    fitting_tokens,
    held_bytes,
    load_of,
    needed_bytes,
    room_of,
)
from settle.doctor.resources.writing_speed import openings
from settle.doctor.subject import Subject
from settle.doctor.trial import LEAST_RATIO, Trial
from settle.doctor.weights.same_model import other_files
from settle.formats.gguf import read_gguf
from settle.infer.child_process import Load
from settle.machine import bandwidth, read_from_disk
from settle.plan.fit.model_shapes import NamedShape, shape_of_file

LEAST_SHARE = 0.1  # of the file, that is read from the disk for each token: less is what was never read before
MEASURED_BYTES = 1 << 30  # of a file that a look loads once more; of a larger one its size says enough
PAIRS = 12  # of times
LOOKED = 3  # tokens that a look writes


class PagedWeights(Check):
    """A model with its context should stay in memory as a whole."""

    number: ClassVar[int] = 4
    symptom: ClassVar[str] = "seconds or minutes for each token, while the disk is busy"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 1.5

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.model is not None
        load, room = load_of(subject), room_of(subject)
        named = shape_of_file(load.path, subject.model.name)
        assert named.bytes is not None
        if held_bytes(named, load.context) > room:
            return  # it would not load at all, which is another check's
        needed = needed_bytes(named, load.context)
        measured = _measured(subject, load, room, fits=needed <= room, size=named.bytes)
        if (measured is None and needed <= room) or (measured and measured.read < LEAST_SHARE * named.bytes):
            return
        what = f"the weights do not stay in memory beside a context of {load.context:,} tokens"
        if needed <= room:
            what = "other programs push the weights out of memory"
        evidence = (_memory_text(needed, room), *(_pace_text(measured, named.bytes) if measured else ()))
        details = {"context": load.context, "room": room, **_knob(subject, named, load.context, room)}
        yield Finding(self.part_name(), what, evidence, 0.95 if measured else 0.8, details)

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        details, asked = finding.details, replace(load_of(subject), room=int(str(finding.details["room"])))
        changed = _changed(asked, finding)
        if changed == asked:
            return None
        size = asked.path.stat().st_size
        return Trial(
            knob=f"{details['other']} in its place" if details["other"] else f"a context of {changed.context:,} tokens",
            before=TokenTime("as it is", asked),
            after=TokenTime("changed", changed),
            measure="seconds for a token",
            unit="s",
            items=openings(0, PAIRS),
            others=openings(PAIRS, PAIRS),
            least=LEAST_RATIO,
            timed=True,
            seconds=1.5 + size / 2e8,
            apart=True,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        tokens, other = int(str(finding.details["tokens"])), finding.details["other"]
        if tokens:
            return Fix(f"ask for {tokens:,} tokens of context", f"settle chat {subject.name} --context {tokens}")
        if other:
            return Fix("use the smaller file", f"settle chat {other}")
        return Fix("take a smaller file, or end other programs", f"settle shrink {subject.name}")


def _measured(subject: Subject, load: Load, room: int, fits: bool, size: int) -> Pace | None:
    """How a token is written: by the reader of the look where it should fit, else within that much memory; None where
    loading it once more takes too long."""
    assert subject.model is not None
    if fits:
        with reader_of(subject.model) as reader:
            before, answer = read_from_disk(reader.engine.pid), reader.engine.timed("Once", LOOKED)
            written = max(1, len(answer.ids))
            return Pace(answer.seconds / written, (read_from_disk(reader.engine.pid) - before) / (written + 1))
    if size > MEASURED_BYTES:
        return None
    with running(replace(load, room=room)) as child:
        return pace(child, "Once", LOOKED)


def _memory_text(needed: float, room: int) -> str:
    if needed > room:
        return f"they take about {needed / 1e9:.2f} GB together, and {room / 1e9:.2f} GB are free"
    pressure = memory_pressure()
    return f"in {pressure or 0:.0%} of the last ten seconds something waited for memory"


def _pace_text(pace: Pace, size: int) -> tuple[str, str]:
    return (
        f"for each token {pace.read / 1e6:,.0f} of {size / 1e6:,.0f} MB are read from the disk again",
        f"a token takes {pace.seconds:.2g} s, and memory would give its weights in {size / bandwidth():.2g} s",
    )


def _knob(subject: Subject, named: NamedShape, context: int, room: int) -> dict[str, object]:
    """The one thing to change: a shorter context, else a smaller file of the same model that is here."""
    assert subject.model is not None
    path = subject.model.weights
    tokens = fitting_tokens(named, context, room)
    if tokens:
        return {"tokens": tokens if tokens < context else 0, "other": None}
    files = [shape_of_file(other, str(other)) for other in other_files(path, read_gguf(path))]
    smaller = [file.name for file in files if needed_bytes(file, context) <= KEPT * room]
    return {"tokens": 0, "other": smaller[0] if smaller else None}


def _changed(asked: Load, finding: Finding) -> Load:
    tokens, other = int(str(finding.details["tokens"])), finding.details["other"]
    if tokens:
        return replace(asked, context=tokens)
    return replace(asked, path=Path(str(other))) if other else asked
