"""Positions are turned by other angles than in the model's training."""

import random
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS, PROSE, SENTENCES
from settle.doctor.likelihood import (
    NATS,
    LikelihoodReading,
    Reader,
    prose_trial,
    reader_of,
    strength_of,
    text_reading,
)
from settle.doctor.model_files import Changes, MetadataCheck
from settle.doctor.subject import ModelFile
from settle.doctor.trial import HeldSide, Item, Trial, typed
from settle.formats import Metadata
from settle.formats.gguf import read_gguf, write_edited
from settle.infer.engine import Engine
from settle.infer.scorer import Overrides, Scorer
from settle.library.facts import longest_context
from settle.library.reference import ModelRef

BASES = (1e4, 1e5, 1e6)  # that models are trained with; one between them does about as its neighbours do
FACTOR = 4.0  # of a base that is another one, and of positions that are stretched where the file does not say so
LOOKED = 1  # paragraphs that a look reads
READ = 64  # tokens of it
REWRITTEN_BYTES = 1 << 30  # of a file that a look writes again with another base
LEAST_NATS = 0.15  # per token
LONGEST_PROVEN = 16_384  # tokens of context, which a proof reads twice
BLOCK, BLOCKS = 64, 12  # tokens behind the trained context that a proof reads together, and how many times
NEAR = 512  # tokens before them that are read alone


class Positions(Details):
    """What the positions should be: "base N", "factor N", or "context" for one that the model was `trained` on."""

    change: str
    trained: int = 0


class Rope(MetadataCheck[Positions]):
    """The angles by which positions are told apart belong to the weights: others blur what was written before."""

    number: ClassVar[int] = 10
    symptom: ClassVar[str] = "gibberish, the more the longer the text: rotary positions are not the model's own"
    seconds: ClassVar[float] = 5.0
    is_vital: ClassVar[bool] = True

    def detect(self, subject: ModelFile) -> Iterator[Finding[Positions]]:
        yield from self._too_long(subject)
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
            if own - min(losses.values()) <= LEAST_NATS and _slides(subject.model, metadata):
                losses |= _rewritten(subject.model, losses, readings)
        best = min(losses, key=losses.__getitem__)
        gain = own - losses[best]
        if gain > LEAST_NATS:
            yield self.finding(
                "the file's rotary positions are not those that the model was trained with",
                f"prose costs {own:.2f} nats per token as it is, {losses[best]:.2f} with {best}",
                f"the file says base {_base(metadata):g}, factor {_factor(metadata):g}",
                strength=strength_of(gain),
                details=Positions(change=best),
            )

    def _too_long(self, subject: ModelFile) -> Iterator[Finding[Positions]]:
        """Yield a context that the model was not trained on."""
        weights, asked = subject.model.weights, subject.running.context or 0
        trained = longest_context(weights.name, read_gguf(weights).metadata)
        if asked > trained:
            what = f"a context of {asked:,} tokens is longer than the model was trained on"
            seen = f"the file says {trained:,}; what is further back is turned by angles that it never saw"
            details = Positions(change="context", trained=trained)
            yield self.finding(what, seen, strength=0.7, details=details)

    def trial(self, finding: Finding[Positions], subject: ModelFile, folder: Path) -> Trial | None:
        change = finding.details.change
        if change == "context":
            return _late_trial(subject.model, finding.details.trained)
        fixed = self.fixed_file(finding, subject, folder)
        return prose_trial(change, subject.model, fixed, LOOKED, LEAST_NATS / 2)

    def fix(self, finding: Finding[Positions], subject: ModelFile) -> Fix:
        if finding.details.change == "context":
            trained = finding.details.trained
            return Fix(
                f"ask for {trained:,} tokens of context at most", f"settle chat {subject.name} --context {trained}"
            )
        return super().fix(finding, subject)

    def changes(self, finding: Finding[Positions], subject: ModelFile) -> Changes:
        return _changes(subject.model, finding.details.change)


class LateBlock(NamedTuple):
    """Some tokens of a long text."""

    text: int  # its number
    ids: list[int]  # of the whole text
    begin: int  # the first token of the block


class _Late(HeldSide[Scorer]):
    """Nats per token of a block behind the context that the model was trained on.

    near: tokens before it that are read alone, so that no angle is new; None for all of the text.
    """

    def __init__(self, name: str, model: ModelRef, longest: int, near: int | None) -> None:
        self.name, self._model, self._longest, self._near = name, model, longest, near
        self.num_bytes = 2 * model.weights.stat().st_size
        self._read: dict[int, list[float]] = {}  # by text, once it was read as a whole

    def make(self) -> Scorer:
        overrides = Overrides(adapter=self._model.adapter)
        return Scorer(self._model.weights, self._longest - 1, overrides=overrides, beyond=True)

    def measure(self, item: Item) -> float:
        text, ids, begin = typed(item, LateBlock)
        if self._near is not None:
            first = begin - self._near
            losses = self._losses(ids[first : begin + BLOCK])[-BLOCK:]
        else:
            if text not in self._read:
                self._read[text] = self._losses(ids)
            losses = self._read[text][begin - 1 : begin - 1 + BLOCK]
        return sum(losses) / len(losses)

    def _losses(self, ids: list[int]) -> list[float]:
        """Return nats of every id but the first."""
        return [-float(logprob) for logprob in self.held.rows(ids, top=1, sampled=1).came_logprobs]


def _slides(model: ModelRef, metadata: Metadata) -> bool:
    """Return whether a base that is only asked for does not reach all layers.

    llama.cpp turns those that look back over a window by the base of the file.
    """
    window = metadata.get(f"{metadata['general.architecture']}.attention.sliding_window")
    return bool(window) and model.weights.stat().st_size <= REWRITTEN_BYTES


def _rewritten(model: ModelRef, names: Collection[str], readings: Sequence[LikelihoodReading]) -> dict[str, float]:
    """Return the loss with each other base in a copy of the file, by what is changed."""
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in names if name.startswith("base")):
            path = write_edited(model.weights, Path(folder) / "other.gguf", _changes(model, name))
            with Reader(model, path) as reader:
                losses[name] = sum(map(reader.nats, readings)) / LOOKED
    return losses


def _late_trial(model: ModelRef, trained: int) -> Trial | None:
    """Return the A/B of text behind the trained context, by whether what is far before it is read at all."""
    if trained > LONGEST_PROVEN:
        return None
    longest, near = trained + BLOCK * BLOCKS, min(NEAR, trained // 2)
    sentences, texts = [*PROSE, *SENTENCES], []
    with Engine(model.weights, 512, adapter=model.adapter) as engine:
        for seed in range(2):
            draws, ids = random.Random(seed), engine.plain("")
            while len(ids) < longest:
                ids = [*ids, *engine.tokenize(" ".join(draws.sample(sentences, len(sentences))) + "\n")]
            texts.append(ids[:longest])
    items: list[list[Item]] = [
        [LateBlock(seed, ids, trained + BLOCK * n)._asdict() for n in range(BLOCKS)] for seed, ids in enumerate(texts)
    ]
    return Trial(
        knob=f"at most {trained:,} tokens of context",
        before=_Late("as long as it is", model, longest, None),
        after=_Late("as the model was trained", model, longest, near),
        measure="loss of prose behind the trained context",
        unit=NATS,
        items=items[0],
        others=items[1],
        least=LEAST_NATS / 2,
        seconds=longest / 2000,
    )


def _others(metadata: Metadata) -> dict[str, Overrides]:
    """Return what the positions may be instead, by what is changed."""
    base, factor = _base(metadata) or BASES[0], _factor(metadata)
    others = {
        f"base {other:g}": Overrides(rope_base=other) for other in BASES if not base / FACTOR < other < base * FACTOR
    }
    changed = 1.0 if factor != 1.0 else FACTOR
    return others | {f"factor {changed:g}": Overrides(rope_scale=1 / changed)}


def _changes(model: ModelRef, change: str) -> Changes:
    """Return the changes of the metadata for a change by its name."""
    metadata = read_gguf(model.weights).metadata
    what, _, value = change.partition(" ")
    if what == "base":
        return {_key(metadata, "freq_base"): float(value)}
    kind = "none" if float(value) == 1.0 else "linear"
    return {_key(metadata, "scaling.type"): kind, _key(metadata, "scaling.factor"): float(value)}


def _base(metadata: Metadata) -> float | None:
    """Return the base of the angles; None where the model has no rotary positions."""
    value = metadata.get(_key(metadata, "freq_base"))
    has_rope = value is not None or _key(metadata, "dimension_count") in metadata
    return (float(value) if isinstance(value, int | float) else BASES[0]) if has_rope else None


def _factor(metadata: Metadata) -> float:
    value = metadata.get(_key(metadata, "scaling.factor"))
    return float(value) if isinstance(value, int | float) and value else 1.0


def _key(metadata: Metadata, name: str) -> str:
    return f"{metadata['general.architecture']}.rope.{name}"
