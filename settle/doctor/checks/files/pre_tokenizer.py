"""The file cuts a text into other words, before merging, than the tokenizer that the model was trained with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from settle.base.errors import FormatError
from settle.data.tokenizer.pre_tokenizers import WAYS, words
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.doctor.findings import Details, Finding
from settle.doctor.known_answers import PROSE, SPELLED
from settle.doctor.likelihood import GUARDED, LikelihoodReading, LikelihoodSide, Reader, reader_of, strength_of
from settle.doctor.model_files import Changes, MetadataCheck
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Item, Trial
from settle.formats import Metadata

PRE, SPACE_PREFIX, MODEL = "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.model"
# one name for each way that there is
NAMES = (
    "llama-bpe", "qwen2", "gpt-2", "smollm", "tekken", "gpt-4o", "deepseek-v3", "deepseek-coder", "falcon", "default",
)  # fmt: skip
EVERY = 8  # token of the vocabulary that is looked at
RIVALS = 2  # ways that are compared with the file's own
LOOKED, PROVEN = 2, 10  # texts that a look reads, and a proof
LEAST_NATS = 0.02  # per byte


class Cut(Details):
    """The way of cutting words in training."""

    way: str


class PreTokenizer(MetadataCheck[Cut]):
    """Numbers, spaces and signs have to be cut as in training: other pieces are tokens that hardly ever came there."""

    number: ClassVar[int] = 9
    symptom: ClassVar[str] = "odd spacing, wrong digits: texts are cut into other tokens than in training"
    seconds: ClassVar[float] = 4.0

    def detect(self, subject: ModelFile) -> Iterator[Finding[Cut]]:
        with reader_of(subject.model) as reader:
            own, losses = _losses(reader)
        if not losses:
            return
        best = min(losses, key=losses.__getitem__)
        gain = own - losses[best]
        if gain > LEAST_NATS:
            key, value = _setting(best)
            yield self.finding(
                f"texts are cut into other tokens than in training, where it was {key} = {_shown(value)}",
                f"{key} is {_shown(reader.engine.metadata.get(key))}",
                f"texts with numbers and signs cost {own:.3f} nats per byte as it is, {losses[best]:.3f} so",
                strength=strength_of(4 * gain),  # a token is some four bytes
                details=Cut(way=best),
            )

    def trial(self, finding: Finding[Cut], subject: ModelFile, folder: Path) -> Trial:
        key, value = _setting(finding.details.way)
        return Trial(
            knob=f"{key} = {_shown(value)}",
            before=_Spelled("as it is", subject.model),
            after=_Spelled("changed", subject.model, self.fixed_file(finding, subject, folder)),
            measure="loss of texts with numbers and signs",
            unit="nats per byte",
            items=SPELLED[LOOKED : LOOKED + PROVEN],
            others=SPELLED[LOOKED + PROVEN :],
            least=LEAST_NATS / 2,
            guards=PROSE[:GUARDED],
            harm=LEAST_NATS / 2,
            seconds=0.5,
        )

    def changes(self, finding: Finding[Cut], subject: ModelFile) -> Changes:
        key, value = _setting(finding.details.way)
        return {key: value}


class _Spelled(LikelihoodSide):
    """A text as llama.cpp cuts it by the file's settings, in nats per byte: the number of tokens differs."""

    def measure(self, item: Item) -> float:
        return _per_byte(self.held, self.held.engine.plain(str(item)), str(item))

    def guard(self, item: Item) -> float:
        return self.measure(item)


def _losses(reader: Reader) -> tuple[float, dict[str, float]]:
    """Return nats per byte of the texts of a look as the file cuts them, and in each way that cuts them otherwise."""
    metadata, texts = reader.engine.metadata, SPELLED[:LOOKED]
    cuts = {name: [reader.engine.opened(ids) for ids in each] for name, each in _cuts(metadata, texts).items()}
    own = [reader.engine.plain(text) for text in texts]
    known = {str(own): _mean(reader, own, texts)}
    losses = {}
    for name, each in cuts.items():
        if str(each) not in known:
            known[str(each)] = losses[name] = _mean(reader, each, texts)
    return known[str(own)], losses


def _cuts(metadata: Metadata, texts: Sequence[str]) -> dict[str, list[list[int]]]:
    """Return the ids of texts in each way that there is."""
    if metadata.get(MODEL) == "llama":
        changes: dict[str, Changes] = {name: {SPACE_PREFIX: name == "space"} for name in ("space", "no space")}
    elif metadata.get(MODEL) == "gpt2":
        changes = {name: {PRE: name} for name in _plausible(metadata)}
    else:
        return {}
    try:
        return {
            name: [PretrainedTokenizer({**metadata, **change}).encode(text).tolist() for text in texts]
            for name, change in changes.items()
        }
    except FormatError:
        return {}


def _plausible(metadata: Metadata) -> list[str]:
    """Return the ways in which the vocabulary was most likely made.

    Merging never crosses a cut, so the tokens of a vocabulary are whole in its own way; of several such ways it is the
    one that cuts most, or tokens would be across its cuts.
    """
    vocabulary = PretrainedTokenizer({**metadata, PRE: NAMES[0]})
    tokens = [raw.decode(errors="ignore") for raw in vocabulary.token_bytes[::EVERY]]
    ranks = []
    for name in NAMES:
        patterns = WAYS[name].patterns
        crossed = sum(len(words(token, patterns)) > 1 for token in tokens)
        ranks.append((round(crossed / len(tokens), 3), -sum(len(words(text, patterns)) for text in SPELLED), name))
    return [name for _, _, name in sorted(ranks)[:RIVALS]]


def _mean(reader: Reader, ids: Sequence[Sequence[int]], texts: Sequence[str]) -> float:
    return sum(_per_byte(reader, each, text) for each, text in zip(ids, texts, strict=True)) / len(texts)


def _per_byte(reader: Reader, ids: Sequence[int], text: str) -> float:
    return float(reader.losses(LikelihoodReading(ids, 1)).sum()) / len(text.encode())


def _setting(way: str) -> tuple[str, str | bool]:
    return (SPACE_PREFIX, way == "space") if way in ("space", "no space") else (PRE, way)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
