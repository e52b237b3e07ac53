"""A decision model in llama.cpp: typed questions about a state in, a probability for every option out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import DataError, UsageError
from settle.data.decisions.prompt import DecisionPrompt
from settle.data.decisions.questions import DecisionAnswer, Question, state_text
from settle.formats.gguf import read_gguf
from settle.formats.gguf.decision import DecisionKeys, read_decision
from settle.infer.child_process import Child, ChildModel, Json, Load, fitting_context
from settle.infer.template_check import require_sound_model
from settle.library.facts import control_tokens

PATH = "/v1/systemone"


@dataclass(frozen=True)
class LlamaForm:
    """Questions and answers as llama.cpp's `/v1/systemone` has them (tools/server/server-decision.cpp, October 2026).

    llama.cpp reads special tokens wherever they are in a rendered prompt, so what a state, a question or an option
    spells of them is parted here, as it was in training. A question that a model was tuned for is put with its options
    in the order of the training, whatever order they come in; questions go under names of our own.

    prompt: parts special tokens. trained: the questions that the model was tuned for.
    """

    prompt: DecisionPrompt
    trained: tuple[Question, ...] = ()

    @classmethod
    def of(cls, keys: DecisionKeys, controls: Sequence[str]) -> "LlamaForm":
        """Read the form of a model with these keys.

        controls: its tokens that stand for no text. Raises DataError for keys whose questions are none.
        """
        trained = tuple(Question.from_json(question, name) for name, question in keys.questions.items())
        return cls(DecisionPrompt("", "", tuple(controls)), trained)

    def request(self, state: object, questions: Sequence[Question]) -> Json:
        """Make the body for llama.cpp. state: text, or JSON. Raises DataError for options that it cannot tell apart."""
        body = {str(i): self._spelled(question) for i, question in enumerate(questions)}
        return {"state": self.prompt.plain(state_text(state)), "questions": body}

    def answers(self, reply: Json, questions: Sequence[Question]) -> list[DecisionAnswer]:
        """Read what llama.cpp answered, in the order of the questions and their options.

        Raises DataError for a reply of another form.
        """
        try:
            given = reply["answers"]
            return [DecisionAnswer(q, self._probabilities(given[str(i)], q)) for i, q in enumerate(questions)]
        except (KeyError, TypeError, ValueError):
            raise DataError("llama.cpp answered in another form than is known here", "update settle") from None

    def _ordered(self, question: Question) -> Question:
        alike = (own for own in self.trained if own.type == question.type == "choice")
        return next((own for own in alike if set(own.options) == set(question.options)), question)

    def _spelled(self, question: Question) -> Json:
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

    def _probabilities(self, answer: Json, question: Question) -> tuple[float, ...]:
        if question.type == "noul":
            true = float(answer["noul"])
            return (1.0 - true, true)
        by_key = answer["probabilities"]
        return tuple(float(by_key[self.prompt.plain(option.key)]) for option in question.options)


LONGEST = 4096  # tokens of a state with its question, unless more is asked for


class Decider(ChildModel[Child]):
    """One decision model loaded in one llama.cpp child. Threads may share it.

    context: the largest number of tokens of a state with one question; never more than the model was trained for.
    slots: questions about one state that are read together, behind the state that they share.
    Raises FormatError for a file that is not a sound GGUF, UsageError for a model that does not decide, EngineError
    when llama.cpp refuses the file or dies.
    """

    def __init__(
        self, path: Path | str, context: int | None = None, threads: int | None = None, slots: int = 2
    ) -> None:
        self.path = Path(path)
        self.metadata = read_gguf(self.path).metadata
        keys = read_decision(self.metadata)
        if keys is None:
            raise UsageError(
                f"{self.path.name} is no decision model",
                "`settle tune MODEL ROWS --objective decision` makes one of labelled rows",
            )
        self.keys: DecisionKeys = keys
        self._form = LlamaForm.of(keys, control_tokens(self.metadata))
        fitting = fitting_context(self.path.name, self.metadata, context or LONGEST, slots)
        self._child = Child(Load(self.path, fitting, slots, threads=threads))

    def start(self) -> None:
        """Start llama.cpp and wait until it has loaded the model. Raises EngineError."""
        require_sound_model(self.path.name, self.metadata)
        super().start()

    def decide(self, state: object, questions: Sequence[Question]) -> list[DecisionAnswer]:
        """Answers in the order of the questions. state: text, or JSON. Raises DataError, EngineError."""
        if not state_text(state).strip():
            raise DataError("the text to decide about is empty", "give some text")
        reply = self._child.post(PATH, self._form.request(state, questions))
        return self._form.answers(reply, questions)
