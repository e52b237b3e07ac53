"""The token that opens a text is missing, or is there where the model was trained without it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.edited_file import edited_file, fix_of
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE, SPELLED, KnownAnswer
from settle.doctor.likelihood import (
    GUARDED,
    HARM_NATS,
    LikelihoodSide,
    Reading,
    answer_reading,
    reader_of,
    strength_of,
)
from settle.doctor.subject import Subject
from settle.doctor.trial import Item, Trial
from settle.infer.engine import Engine
from settle.library.facts import TEMPLATE_KEY

KEY = "tokenizer.ggml.add_bos_token"
LOOKED = 8  # texts that a look reads the beginning of
SENTENCE = 20  # tokens, about
BEGINNING = 8  # tokens of a text, in which the token before it shows: what follows has enough else before it
# nats per token of those: a token that does not belong there costs little, one that is missed much; to know that a text
# begins here helps a little where texts were only ever separated by that token
LEAST_TO_LEAVE_OUT, LEAST_TO_ADD = 0.15, 1.0


class OpeningToken(Check):
    """A text should begin with the token that the model saw at the beginning of its texts, once."""

    number: ClassVar[int] = 8
    symptom: ClassVar[str] = "rambling from the first word on: the opening token is missing, or there twice"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 3.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.model is not None
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
                with_it = reader.nats(Reading([opening, *ids], 2))
                gains.append(with_it - reader.nats(Reading(ids, 1)))
        gain = sum(gains) / len(gains) * (1 if is_set else -1)
        if gain > _least(is_set):
            state = "adds" if is_set else "leaves out"
            yield Finding(
                check=self.part_name(),
                what=f"the file {state} the token that opens a text, and the model was trained otherwise",
                evidence=(
                    f"{KEY} is {str(is_set).lower()}",
                    f"the first words of prose are {gain:.2f} nats per token likelier otherwise",
                ),
                strength=strength_of(gain * BEGINNING / SENTENCE),  # other causes are as strong as in whole sentences
                details={"is_set": is_set},
            )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial:
        assert subject.model is not None
        wanted = not finding.details["is_set"]
        fixed = edited_file(subject.model, folder / "fixed.gguf", {KEY: wanted})
        return Trial(
            knob=f"{KEY} = {str(wanted).lower()}",
            before=_Prose("as it is", subject.model),
            after=_Prose("changed", subject.model, fixed),
            measure="loss of the first words",
            unit="nats per token",
            items=[*PROSE[LOOKED::2], *SPELLED[::2]],
            others=[*PROSE[LOOKED + 1 :: 2], *SPELLED[1::2]],
            least=_least(not wanted),
            guards=[known._asdict() for known in KNOWN_ANSWERS[:GUARDED]],
            harm=HARM_NATS,
            seconds=0.3,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return fix_of(subject, self.number, {KEY: not finding.details["is_set"]})


class _Prose(LikelihoodSide):
    """The beginning of prose as llama.cpp reads it by the file's settings."""

    def reading(self, engine: Engine, item: Item) -> Reading:
        ids = engine.tokenize(str(item), opening=True)
        first = 2 if ids[:1] == [engine.metadata.get("tokenizer.ggml.bos_token_id")] else 1
        return Reading(ids[: first + BEGINNING], first)

    def guard_reading(self, engine: Engine, item: Item) -> Reading:
        """An answer in turns, whose template may write the token itself."""
        assert isinstance(item, Mapping)
        known = KnownAnswer(str(item["question"]), str(item["answer"]))
        return answer_reading(engine, known, str(engine.metadata[TEMPLATE_KEY]) if engine.takes_turns else None, None)


def _least(is_set: bool) -> float:
    return LEAST_TO_LEAVE_OUT if is_set else LEAST_TO_ADD
