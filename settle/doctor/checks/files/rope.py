"""Positions are turned by other angles than in the model's training."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.base.errors import UsageError
from settle.doctor.checks import Check
from settle.doctor.edited_file import edited_file, fix_of, with_file
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS
from settle.doctor.likelihood import LikelihoodSide, prose_trial, reader_of, strength_of, text_reading
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.formats.gguf import read_gguf
from settle.infer.scorer import Overrides
from settle.library.facts import Metadata

BASES = (1e4, 1e5, 1e6)  # that models are trained with; one between them does about as its neighbours do
FACTOR = 4.0  # of a base that is another one, and of positions that are stretched where the file does not say so
WRONG_BASE = 10.0
LOOKED = 1  # paragraphs that a look reads
READ = 64  # tokens of it
LEAST_NATS = 0.15  # per token


class Rope(Check):
    """The angles by which positions are told apart belong to the weights: others blur what was written before."""

    number: ClassVar[int] = 10
    symptom: ClassVar[str] = "gibberish, the more the longer the text: rotary positions are not the model's own"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 5.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.model is not None
        with reader_of(subject.model) as reader:
            metadata = reader.engine.metadata
            if _base(metadata) is None:
                return
            readings = [text_reading(reader.engine, text, READ) for text in PARAGRAPHS[:LOOKED]]
            own = sum(map(reader.nats, readings)) / LOOKED
            losses: dict[str, float] = {}
            for name, overrides in _others(metadata).items():
                with reader.overridden(overrides):
                    losses[name] = sum(map(reader.nats, readings)) / LOOKED
        best = min(losses, key=losses.__getitem__)
        gain = own - losses[best]
        if gain > LEAST_NATS:
            yield Finding(
                check=self.part_name(),
                what="the file's rotary positions are not those that the model was trained with",
                evidence=(
                    f"prose costs {own:.2f} nats per token as it is, {losses[best]:.2f} with {best}",
                    f"the file says base {_base(metadata):g}, factor {_factor(metadata):g}",
                ),
                strength=strength_of(gain),
                details={"change": best},
            )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial:
        assert subject.model is not None
        changes = _changes(subject, str(finding.details["change"]))
        fixed = edited_file(subject.model, folder / "fixed.gguf", changes)
        return prose_trial(
            knob=str(finding.details["change"]),
            before=LikelihoodSide("as it is", subject.model),
            after=LikelihoodSide("changed", subject.model, fixed),
            looked=LOOKED,
            least=LEAST_NATS / 2,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return fix_of(subject, self.number, _changes(subject, str(finding.details["change"])))

    def injected(self, healthy: Subject, folder: Path) -> Subject:
        assert healthy.model is not None
        metadata = read_gguf(healthy.model.weights).metadata
        if _base(metadata) is None:
            raise UsageError("this model has no rotary positions", "choose one that has them")
        changes = {_key(metadata, "freq_base"): WRONG_BASE}
        return with_file(healthy, edited_file(healthy.model, folder / "broken.gguf", changes))


def _others(metadata: Metadata) -> dict[str, Overrides]:
    """What the positions may be instead, by what is changed."""
    base, factor = _base(metadata) or BASES[0], _factor(metadata)
    others = {
        f"base {other:g}": Overrides(rope_base=other) for other in BASES if not base / FACTOR < other < base * FACTOR
    }
    changed = 1.0 if factor != 1.0 else FACTOR
    return others | {f"factor {changed:g}": Overrides(rope_scale=1 / changed)}


def _changes(subject: Subject, change: str) -> dict[str, object]:
    """Of the metadata, for a change by its name."""
    assert subject.model is not None
    metadata = read_gguf(subject.model.weights).metadata
    what, _, value = change.partition(" ")
    if what == "base":
        return {_key(metadata, "freq_base"): float(value)}
    kind = "none" if float(value) == 1.0 else "linear"
    return {_key(metadata, "scaling.type"): kind, _key(metadata, "scaling.factor"): float(value)}


def _base(metadata: Metadata) -> float | None:
    """None where the model has no rotary positions."""
    value = metadata.get(_key(metadata, "freq_base"))
    has_rope = value is not None or _key(metadata, "dimension_count") in metadata
    return (float(value) if isinstance(value, int | float) else BASES[0]) if has_rope else None


def _factor(metadata: Metadata) -> float:
    value = metadata.get(_key(metadata, "scaling.factor"))
    return float(value) if isinstance(value, int | float) and value else 1.0


def _key(metadata: Metadata, name: str) -> str:
    return f"{metadata['general.architecture']}.rope.{name}"
