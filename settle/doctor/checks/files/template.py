"""The chat template writes turns in another way than the model was trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from settle.doctor.findings import Details, Finding
from settle.doctor.known_answers import KNOWN_ANSWERS, KnownAnswer
from settle.doctor.likelihood import (
    GUARDED,
    HARM_NATS,
    NATS,
    LikelihoodReading,
    LikelihoodSide,
    Reader,
    answer_reading,
    own_template,
    reader_of,
    strength_of,
)
from settle.doctor.model_files import Changes, MetadataCheck
from settle.doctor.subject import ModelFile
from settle.doctor.trial import Item, Trial, typed
from settle.doctor.turns import FORMS, fitting_forms, turn_end
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import TOKENS, texts
from settle.infer.engine import Engine
from settle.library.facts import PLAIN_TEXT_KEY, TEMPLATE_KEY, adapter_template
from settle.library.reference import ModelRef

LOOKED, PROVEN = 3, 10  # answers that a look reads, and a proof
LEAST_NATS = 0.25  # per token
UNKNOWN_END_NATS = 5.0  # of the token that ends an answer, where the model was not trained to write it there
KNOWN_END_NATS = 1.5  # and where it was
PLAIN = "plain text"  # no turns


class Loss(NamedTuple):
    """Nats per token of known answers."""

    whole: float  # answers with their ends
    answer: float  # answers alone
    end: float  # ends alone, nan where there are none


class TurnForm(Details):
    """How turns were written in training."""

    form: str


class Template(MetadataCheck[TurnForm]):
    """Turns have to be written as they were in training, or the model does not see what is asked, and when to end."""

    number: ClassVar[int] = 6
    symptom: ClassVar[str] = "garbage, or role words in the answer: the chat template is not the model's own"
    seconds: ClassVar[float] = 4.0
    is_vital: ClassVar[bool] = True

    def detect(self, subject: ModelFile) -> Iterator[Finding[TurnForm]]:
        model = subject.model
        if model.adapter is not None and adapter_template(model.adapter):
            return  # the adapter was trained with the template that it brings
        with reader_of(model) as reader:
            metadata, has_turns = reader.engine.metadata, reader.engine.takes_turns
            own = _loss(reader, str(metadata[TEMPLATE_KEY])) if has_turns else None
            gains: dict[str, tuple[float, Loss, Loss]] = {}
            for name in fitting_forms(texts(metadata, TOKENS)):
                loss = _loss(reader, FORMS[name].template)
                before = own or _loss(reader, None, turn_end(metadata, FORMS[name].template))
                gains[name] = before.whole - loss.whole, before, loss
            if own and own.end > UNKNOWN_END_NATS:
                plain = _loss(reader, None)
                gains[PLAIN] = own.answer - plain.answer, own, plain
        best = max(gains, key=lambda name: gains[name][0])
        gain, before, after = gains[best]
        if gain > LEAST_NATS and (own or after.end < KNOWN_END_NATS):
            cause = f"the chat template is not the one that the model was trained with, which writes turns as in {best}"
            if best == PLAIN:
                cause = "the file has a chat template, and its model was trained on plain text"
            elif own is None:
                cause = f"the file has no chat template, and its model was trained on turns as in {best}"
            evidence = _evidence(before, after, best)
            yield self.finding(cause, *evidence, strength=strength_of(gain), details=TurnForm(form=best))

    def trial(self, finding: Finding[TurnForm], subject: ModelFile, folder: Path) -> Trial:
        form, fixed = finding.details.form, self.fixed_file(finding, subject, folder)
        metadata = read_gguf(subject.model.weights).metadata
        end = turn_end(metadata, FORMS[form].template) if form != PLAIN else None
        answers = [known._asdict() for known in KNOWN_ANSWERS[LOOKED:]]
        return Trial(
            knob=f"turns as in {form}",
            before=_Answers("as it is", subject.model, end),
            after=_Answers("changed", subject.model, end, fixed),
            measure="loss of known answers" if end is None else "loss of known answers and their ends",
            unit=NATS,
            items=answers[:PROVEN],
            others=answers[PROVEN:],
            least=LEAST_NATS,
            guards=answers[-GUARDED:],
            harm=HARM_NATS,
            seconds=0.5,
        )

    def changes(self, finding: Finding[TurnForm], subject: ModelFile) -> Changes:
        form = finding.details.form
        if form == PLAIN:
            return {TEMPLATE_KEY: None}
        return {TEMPLATE_KEY: FORMS[form].template, PLAIN_TEXT_KEY: None}


class _Answers(LikelihoodSide):
    """Known answers behind their questions, in the turns that the file has.

    end: what a file without turns is asked for behind an answer, None to leave the ends out.
    """

    def __init__(self, name: str, model: ModelRef, end: str | None, path: Path | None = None) -> None:
        super().__init__(name, model, path)
        self._end = end

    def reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        return answer_reading(engine, typed(item, KnownAnswer), own_template(engine), self._end)

    def guard_reading(self, engine: Engine, item: Item) -> LikelihoodReading:
        """Return the second answer of a conversation."""
        return answer_reading(engine, typed(item, KnownAnswer), own_template(engine), None, KNOWN_ANSWERS[0])


def _loss(reader: Reader, template: str | None, end: str | None = None) -> Loss:
    """Return the loss of the answers of a look. template: by which turns are written, None for plain text."""
    answers, ends = [], []
    has_end = template is not None or end is not None
    for known in KNOWN_ANSWERS[:LOOKED]:
        losses = reader.losses(answer_reading(reader.engine, known, template, end or template))
        answers += losses[: len(losses) - has_end].tolist()
        ends += losses[len(losses) - has_end :].tolist()
    return Loss(float(np.mean(answers + ends)), float(np.mean(answers)), float(np.mean(ends)) if ends else float("nan"))


def _evidence(before: Loss, after: Loss, form: str) -> tuple[str, ...]:
    if form == PLAIN:
        return (
            f"known answers cost {before.answer:.2f} nats per token in its turns, {after.answer:.2f} as plain text",
            f"the model ends a turn with a probability of {np.exp(-before.end):.2%}",
        )
    return (
        f"known answers cost {before.whole:.2f} nats per token as it is, {after.whole:.2f} in those turns",
        f"the model ends the answer there with a probability of {np.exp(-after.end):.0%}, "
        f"as it is {np.exp(-before.end):.0%}",
    )
