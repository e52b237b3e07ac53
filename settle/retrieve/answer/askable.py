"""A collection that answers questions: what `settle.index()` returns and `settle.retrieve.Collection` names."""

from collections.abc import Sequence
from pathlib import Path

from settle.retrieve.answer.answering_model import Writer
from settle.retrieve.answer.ask import PASSAGES, Answer, answer, look, whole
from settle.retrieve.index.collection import Collection


class AskableCollection(Collection):
    """An opened collection and the language model that answers from it."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        super().__init__(name, folder)
        self._writer: Writer | None = None

    def ask(self, question: str, model: str | None = None, earlier: Sequence[str] = (), k: int = PASSAGES) -> Answer:
        """The answer with its citations, as `settle ask` gives it; `str()` of it is for reading.

        model: a run, a model of the store or a .gguf file, loaded at the first question and kept until `close`;
        `none` only quotes. earlier: questions that this one may refer to. Raises SettleError.
        """
        if self._writer is not None and self._writer.asked != model:
            self._writer.close()
            self._writer = None
        self._writer = self._writer or Writer(self, model)
        found = look(self, question, earlier, k)
        return whole(answer(self, self._writer.engine() if found.evidence.enough else None, found))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        super().close()
