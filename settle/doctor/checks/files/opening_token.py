"""The token that opens a text is missing, or is there where the model was trained without it."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.findings import Details, Finding
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE, SPELLED, KnownAnswer
from settle.doctor.likelihood import (
    GUARDED,
    HARM_NATS,
    NATS,
    LikelihoodReading,
    LikelihoodSide,
    answer_reading,
    own_template,
    reader_of,
    strength_of,
)
from settle.doctor.model_files import Changes, MetadataCheck
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Item, Trial, typed
from settle.infer.engine import Engine

KEY = "tokenizer.ggml.add_bos_token"
LOOKED = 8  # texts that a look reads the beginning of
SENTENCE = 20  # tokens, about
BEGINNING = 8  # tokens of a text, in which the token before it shows: what follows has enough else before it
# nats per token of those: a token that does not belong there costs little, one that is missed much; to know that a text
# begins here helps a little where texts were only ever separated by that token
LEAST = {True: 0.15, False: 1.0}  # by whether the token is there


class Opening(Details):
    """Whether the file adds the token."""

    is_set: bool


class OpeningToken(MetadataCheck[Opening]):
    """A text should begin with the token that the model saw at the beginning of its texts, once."""

    number: ClassVar[int] = 8
    symptom: ClassVar[str] = "rambling from the first word on: the opening token is missing, or there twice"
    seconds: ClassVar[float] = 3.0

    def detect(self, subject: ModelFile) -> Iterator[Finding[Opening]]:
        with reader_of(subject.model) as reader:
            metadata = reader.engine.metadata
            opening = metadata.get("tokenizer.ggml.bos_token_id")
            if not isinstance(opening, int):
                return
            is_set = bool(metadata.get(KEY))
            gains = []
            for text in PROSE[:LOOKED]:
                ids = reader.engine.tokenize(text)[: BEGINNING + 1]
                # the first id is predicted in one of the two only: neither counts it
                with_it = reader.nats(LikelihoodReading([opening, *ids], 2))
                gains.append(with_it - reader.nats(LikelihoodReading(ids, 1)))
        gain = sum(gains) / len(gains) * (1 if is_set else -1)
        if gain > LEAST[is_set]:
            state = "adds" if is_set else "leaves out"
            yield self.finding(
                f"the file {state} the token that opens a text, and the model was trained otherwise",
                f"{KEY} is {str(is_set).lower()}",
                f"the first words of prose are {gain:.2f} nats per token likelier otherwise",
                strength=strength_of(gain * BEGINNING / SENTENCE),  # other causes are as strong as in whole sentences
                details=Opening(is_set=is_set),
            )

    def trial(self, finding: Finding[Opening], subject: ModelFile, folder: Path) -> Trial:
        is_set, fixed = finding.details.is_set, self.fixed_file(finding, subject, folder)
        return Trial(
            knob=f"{KEY} = {str(not is_set).lower()}",
            before=_Beginning("as it is", subject.model),
            after=_Beginning("changed", subject.model, fixed),
            measure="loss of the first words",
            unit=NATS,
            items=[*PROSE[LOOKED::2], *SPELLED[::2]],
            others=[*PROSE[LOOKED + 1 :: 2], *SPELLED[1::2]],
            least=LEAST[is_set],
            guards=[known._asdict() for known in KNOWN_ANSWERS[:GUARDED]],
            harm=HARM_NATS,
            seconds=0.3,
        )

    def changes(self, finding: Finding[Opening], subject: ModelFile) -> Changes:
        return {KEY: not finding.details.is_set}


class _Beginning(LikelihoodSide):
    """The beginning of prose as llama.cpp reads it by the file's settings."""

    def reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        ids = engine.tokenize(str(item), opening=True)
        first = 2 if ids[:1] == [engine.metadata.get("tokenizer.ggml.bos_token_id")] else 1
        return LikelihoodReading(ids[: first + BEGINNING], first)

    def guard_reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        """Return an answer in turns, whose template may write the token itself."""
        return answer_reading(engine, typed(item, KnownAnswer), own_template(engine), None)
