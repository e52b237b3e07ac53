"""A decision model in llama.cpp: typed questions about a state in, a probability for every option out."""

from collections.abc import Sequence
from pathlib import Path

from settle.base.errors import DataError, UsageError
from settle.data.decisions.answers import Answer
from settle.data.decisions.prompt import state_text
from settle.data.decisions.questions import Question
from settle.formats.gguf import read_gguf
from settle.formats.gguf.decision import DecisionKeys, read_decision
from settle.infer.child_model import ChildModel
from settle.infer.child_process import Child, Load
from settle.infer.context import fitting_context
from settle.infer.decisions.llama_form import PATH, LlamaForm
from settle.infer.template_check import require_sound_model
from settle.library.facts import control_tokens

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
        """Starts llama.cpp and waits until it has loaded the model. Raises EngineError."""
        require_sound_model(self.path.name, self.metadata)
        super().start()

    def decide(self, state: object, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions. state: text, or JSON. Raises DataError, EngineError."""
        if not state_text(state).strip():
            raise DataError("the text to decide about is empty", "give some text")
        reply = self._child.post(PATH, self._form.request(state, questions))
        return self._form.answers(reply, questions)
