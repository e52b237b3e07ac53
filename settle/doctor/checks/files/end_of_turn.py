"""The token that the model ends its answers with is not one that ends them, or one that is none does."""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.data.tokenizer.vocabulary import CONTROL, ENDS, USER_DEFINED
from settle.doctor.findings import Details, Finding
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE, KnownAnswer
from settle.doctor.likelihood import reader_of, strength_of
from settle.doctor.model_files import Changes, MetadataCheck
from settle.doctor.subject import ModelFile
from settle.doctor.trial import FEWEST_ITEMS, EngineSide, Item, Trial, typed
from settle.formats import Metadata
from settle.formats.gguf.metadata import TOKENS, texts
from settle.infer.engine import Engine
from settle.library.facts import END_KEYS
from settle.library.reference import ModelRef

LOOKED, PROVEN = 3, 12  # answers that a look reads, and a proof
SURE = 0.1  # mean probability behind an answer of a special token: of one that ends none, a sound model gives next to 0
TOP = 40  # tokens
GOES_ON = 2  # tokens, that an answer has at least behind its middle
LONGEST = 64  # tokens that a proof waits for the end of an answer
TYPES = "tokenizer.ggml.token_type"
EOS, EOT, _ = END_KEYS


class OwnEnd(Details):
    """The token that the model ends its answers with."""

    end: int
    token: str


class EndOfTurn(MetadataCheck[OwnEnd]):
    """An answer ends where the model says so, by a token that the file has to name."""

    number: ClassVar[int] = 7
    symptom: ClassVar[str] = "never stops, or breaks off: the token that ends an answer is not the model's own"
    seconds: ClassVar[float] = 3.0

    def detect(self, subject: ModelFile) -> Iterator[Finding[OwnEnd]]:
        with reader_of(subject.model) as reader:
            engine = reader.engine
            if not engine.takes_turns:
                return
            shares = _shares(engine)
            prose = {token for text in PROSE for token in engine.tokenize(text)}
        tokens, ends = texts(engine.metadata, TOKENS), _ends(engine.metadata)
        end = max(shares, key=shares.__getitem__, default=None)
        wrong = sorted(ends & prose)
        if end is None or shares[end] < SURE or (end in ends and not wrong):
            return
        yield self.finding(
            f"answers end with {tokens[end]}, and the file "
            + (f"ends them at {tokens[wrong[0]]!r} too" if wrong else "does not say that this ends them"),
            f"the model gives {tokens[end]} a probability of {shares[end]:.0%} behind a whole answer",
            f"the file ends answers at {', '.join(tokens[token] for token in sorted(ends)) or 'nothing'}",
            strength=strength_of(shares[end]),
            details=OwnEnd(end=end, token=tokens[end]),
        )

    def trial(self, finding: Finding[OwnEnd], subject: ModelFile, folder: Path) -> Trial:
        end, fixed = finding.details.end, self.fixed_file(finding, subject, folder)
        answers = [known._asdict() for known in KNOWN_ANSWERS[LOOKED:]]
        return Trial(
            knob=f"{EOS} = {end} ({finding.details.token})",
            before=_Ended("as it is", subject.model, end),
            after=_Ended("changed", subject.model, end, fixed),
            measure="answers that do not end where the model ends them",
            unit="of 1",
            items=answers[:PROVEN],
            others=answers[PROVEN:],
            least=0.4,
            guards=answers[-FEWEST_ITEMS:],
            seconds=2.0,
        )

    def changes(self, finding: Finding[OwnEnd], subject: ModelFile) -> Changes:
        return {EOS: finding.details.end, EOT: finding.details.end}


class _Ended(EngineSide):
    """1 where an answer continues after the model has ended it, or ends at another token, else 0.

    It begins with the whole of a known one, so that the end is not far.
    """

    def __init__(self, name: str, model: ModelRef, end: int, path: Path | None = None) -> None:
        super().__init__(name, model, 1024, path)
        self._end = end

    def measure(self, item: Item) -> float:
        known = typed(item, KnownAnswer)
        ids = self.held.greedy([*_asked(self.held, known), *self.held.tokenize(known.answer)], LONGEST)
        return float(self._end in ids[:-1] or (len(ids) < LONGEST and ids[-1:] != [self._end]))

    def guard(self, item: Item) -> float:
        """Return 1 where an answer ends in its middle."""
        known = typed(item, KnownAnswer)
        answer = self.held.tokenize(known.answer)
        begun = [*_asked(self.held, known), *answer[: len(answer) // 2]]
        return float(len(self.held.greedy(begun, GOES_ON)) < GOES_ON)


def _asked(engine: Engine, known: KnownAnswer) -> list[int]:
    return [*engine.turns([{"role": "user", "content": known.question}])]


def _shares(engine: Engine) -> dict[int, float]:
    """Return the mean probability behind a whole answer of each special token that is among the likeliest."""
    shares: defaultdict[int, float] = defaultdict(float)
    for known in KNOWN_ANSWERS[:LOOKED]:
        after = engine.next_token_logprobs([*_asked(engine, known), *engine.tokenize(known.answer)], TOP)
        for token, logprob in after.items():
            if _is_special(engine.metadata, token):
                shares[token] += math.exp(logprob) / LOOKED
    return dict(shares)


def _ends(metadata: Metadata) -> set[int]:
    """Return the ids that end an answer: those that the file names, and those that llama.cpp knows by their text."""
    named = {value for key in END_KEYS if isinstance(value := metadata.get(key), int)}
    return named | {i for i, text in enumerate(texts(metadata, TOKENS)) if text in ENDS}


def _is_special(metadata: Metadata, token: int) -> bool:
    types = metadata.get(TYPES)
    return isinstance(types, list) and types[token] in (CONTROL, USER_DEFINED)
