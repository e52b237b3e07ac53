"""Keys and values are kept in a type that is too coarse for the model.

What that costs is measured by how far what the model expects lies from what it expects with all of the precision: the
KL divergence of whole distributions. The loss of a text rises by as much on average, and by chance of the text falls.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from settle.data.likelihoods import Likelihoods
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS, SPELLED
from settle.doctor.likelihood import NATS, LikelihoodSide, Reader, reader_of, strength_of, text_reading
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Item, Trial, typed
from settle.infer.scorer import Overrides
from settle.library.reference import ModelRef

WHOLE = "f16"
LOOKED = 2  # paragraphs that a look reads
LEAST_NATS = 0.02  # per token


class CacheType(Details):
    """The type that keys and values are kept in."""

    cache: str


class KvCache(Check[ModelFile, CacheType]):
    """What is kept of the tokens before is rounded like weights, and some models bear that badly."""

    number: ClassVar[int] = 12
    symptom: ClassVar[str] = "worse answers the longer a chat gets: the KV cache is rounded too coarsely"
    seconds: ClassVar[float] = 3.0

    def detect(self, subject: ModelFile) -> Iterator[Finding[CacheType]]:
        cache = subject.running.cache
        if cache in (WHOLE, "f32", "bf16"):
            return
        with reader_of(subject.model) as reader, tempfile.TemporaryDirectory() as folder:
            costs = _costs(reader, PARAGRAPHS[:LOOKED], Path(folder), cache)
        cost = sum(costs) / LOOKED
        if cost > LEAST_NATS:
            yield self.finding(
                f"a KV cache in {cache} is too coarse for this model",
                f"what it expects next lies {cost:.3f} nats per token from what it expects with {WHOLE}",
                strength=strength_of(cost),
                details=CacheType(cache=cache),
            )

    def trial(self, finding: Finding[CacheType], subject: ModelFile, folder: Path) -> Trial:
        cache, texts = finding.details.cache, [*PARAGRAPHS[LOOKED:], *SPELLED]
        with Reader(subject.model) as reader:
            record = _recorded(reader, texts, folder / "whole.record")
        items: list[Item] = [RecordedText(at, text)._asdict() for at, text in enumerate(texts)]
        return Trial(
            knob=f"KV cache {WHOLE} in place of {cache}",
            before=_Cached(cache, subject.model, record),
            after=_Cached(WHOLE, subject.model, record),
            measure="KL divergence from the model with all of its precision",
            unit=NATS,
            items=items[::2],
            others=items[1::2],
            least=LEAST_NATS / 2,
            seconds=1.0,
        )

    def fix(self, finding: Finding[CacheType], subject: ModelFile) -> Fix:
        return Fix(
            what="keep keys and values in f16, or in q8_0 where memory is short",
            command=f"llama-server --cache-type-k {WHOLE} --cache-type-v {WHOLE}, or OLLAMA_KV_CACHE_TYPE={WHOLE}",
        )


class RecordedText(NamedTuple):
    """A text of the record, by its number."""

    window: int
    text: str


class _Cached(LikelihoodSide):
    """Texts by a model whose keys and values are kept in a type. record: what it expects with all of the precision."""

    def __init__(self, cache: str, model: ModelRef, record: Likelihoods) -> None:
        super().__init__(cache, model, overrides=Overrides(cache=cache))
        self._record = record

    def measure(self, item: Item) -> float:
        return self.held.divergence(self._record, typed(item, RecordedText).window)


def _recorded(reader: Reader, texts: Sequence[str], folder: Path) -> Likelihoods:
    """Record what the model expects at every place of some texts, with all of the precision."""
    return reader.recorded([text_reading(reader.engine, text).ids for text in texts], folder)


def _costs(reader: Reader, texts: Sequence[str], folder: Path, cache: str) -> list[float]:
    """Return for each text the KL divergence that a type of the cache makes, in nats per token."""
    record = _recorded(reader, texts, folder)
    with reader.overridden(Overrides(cache=cache)):
        return [reader.divergence(record, at) for at in range(len(texts))]
