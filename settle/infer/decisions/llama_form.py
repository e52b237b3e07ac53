"""Questions and answers as llama.cpp's `/v1/systemone` has them (its tools/server/server-decision.cpp, October 2026).

llama.cpp reads special tokens wherever they are in a rendered prompt, so what a state, a question or an option spells
of them is parted here, as it was in training. A question that a model was tuned for is put with its options in the
order of the training, whatever order they come in; questions go under names of our own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from settle.base.errors import DataError
from settle.data.decisions.answers import Answer
from settle.data.decisions.prompt import DecisionPrompt, state_text
from settle.data.decisions.questions import Question
from settle.formats.gguf.decision import DecisionKeys

PATH = "/v1/systemone"


@dataclass(frozen=True)
class LlamaForm:
    """prompt: parts special tokens. trained: the questions that the model was tuned for."""

    prompt: DecisionPrompt
    trained: tuple[Question, ...] = ()

    @classmethod
    def of(cls, keys: DecisionKeys, controls: Sequence[str]) -> "LlamaForm":
        """For a model with these keys. controls: its tokens that stand for no text. Raises DataError for keys whose
        questions are none."""
        trained = tuple(Question.from_json(question, name) for name, question in keys.questions.items())
        return cls(DecisionPrompt("", "", tuple(controls)), trained)

    def request(self, state: object, questions: Sequence[Question]) -> dict[str, object]:
        """The body for llama.cpp. state: text, or JSON. Raises DataError for options that it cannot tell apart."""
        body = {str(i): self._spelled(question) for i, question in enumerate(questions)}
        return {"state": self.prompt.plain(state_text(state)), "questions": body}

    def answers(self, reply: Mapping[str, object], questions: Sequence[Question]) -> list[Answer]:
        """What llama.cpp answered, in the order of the questions and their options. Raises DataError for a reply of
        another form."""
        given = reply.get("answers")
        try:
            assert isinstance(given, Mapping)
            return [Answer(q, self._probabilities(given[str(i)], q)) for i, q in enumerate(questions)]
        except (KeyError, TypeError, ValueError, AssertionError):
            raise DataError("llama.cpp answered in another form than is known here", "update settle") from None

    def _ordered(self, question: Question) -> Question:
        """The same question as the model was tuned for it."""
        alike = (own for own in self.trained if own.type == question.type == "choice")
        return next((own for own in alike if set(own.options) == set(question.options)), question)

    def _spelled(self, question: Question) -> dict[str, object]:
        body, options = question.to_json(), self._ordered(question).options
        body["instructions"] = self.prompt.plain(question.instructions)
        described = {self.prompt.plain(o.key): self.prompt.plain(o.description or "") or None for o in options}
        if len(described) < len(options):
            raise DataError("two options differ only in how they spell special tokens", "rename one of them")
        if question.type == "score":
            body["criteria"] = [text or "" for text in described.values()]
        elif "criteria" in body:
            body["criteria"] = described
        return body

    def _probabilities(self, answer: Mapping[str, object], question: Question) -> tuple[float, ...]:
        if question.type == "noul":
            true = answer["noul"]
            assert isinstance(true, float | int)
            return (1.0 - true, float(true))
        by_key = answer["probabilities"]
        assert isinstance(by_key, Mapping)
        return tuple(float(by_key[self.prompt.plain(option.key)]) for option in question.options)
