"""A model that does not load, or is ended while it does: its context and its weights take more memory than there is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.resources import (
    SHORT,
    FailedLoads,
    ResourceCheck,
    fitting_tokens,
    held_bytes,
    load_of,
    needed_bytes,
    room_of,
)
from settle.doctor.subject import ModelFile
from settle.doctor.trial import FEWEST_ITEMS, Item, Trial
from settle.plan.fit.model_shapes import shape_of_file


class TooLong(Details):
    """The context that was asked for, the longest that fits into `room` bytes, or 0, and that room."""

    context: int
    tokens: int
    room: int


class MemoryLoading(ResourceCheck[TooLong]):
    """A model with its context should take less memory than there is."""

    number: ClassVar[int] = 1
    symptom: ClassVar[str] = "out of memory while the model loads"
    seconds: ClassVar[float] = 0.2

    def detect(self, subject: ModelFile) -> Iterator[Finding[TooLong]]:
        named = shape_of_file(subject.model.weights, subject.model.name)
        context, room = subject.running.context or SHORT, room_of(subject)
        if held_bytes(named, context) <= room:
            return
        needed, tokens = needed_bytes(named, context), fitting_tokens(named, context, room)
        what = f"a context of {context:,} tokens does not fit into memory"
        if not tokens:
            what = f"{subject.model.weights.name} does not fit into memory, with any context"
        seen = f"it takes about {needed / 1e9:.2f} GB, and {room / 1e9:.2f} GB are free"
        yield self.finding(what, seen, strength=1.0, details=TooLong(context=context, tokens=tokens, room=room))

    def trial(self, finding: Finding[TooLong], subject: ModelFile, folder: Path) -> Trial | None:
        tokens, room = finding.details.tokens, finding.details.room
        if not tokens:
            return None
        load = load_of(subject)
        prompts: list[Item] = [f"Number {n} is" for n in range(2 * FEWEST_ITEMS)]
        return Trial(
            knob=f"a context of {tokens:,} tokens instead of {load.context:,}",
            before=FailedLoads("as asked", load, room),
            after=FailedLoads("changed", replace(load, context=tokens), room),
            measure="loads that fail",
            unit="of one",
            items=prompts[:FEWEST_ITEMS],
            others=prompts[FEWEST_ITEMS:],
            least=0.5,
            seconds=1.5 + load.path.stat().st_size / 1e9,
        )

    def fix(self, finding: Finding[TooLong], subject: ModelFile) -> Fix:
        if not finding.details.tokens:
            return Fix("take a smaller file", f"settle shrink {subject.name}")
        return self.shorter(subject, finding.details.tokens)
