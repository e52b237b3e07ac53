"""A collection that answers questions: what `settle.index()` returns and `settle.retrieve.Collection` names."""

from collections.abc import Sequence
from pathlib import Path

from settle.retrieve.answer.answer import Answer
from settle.retrieve.answer.answering_model import AnsweringModel
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.retrieval import PASSAGES, retrieve
from settle.retrieve.index.collection import Collection


class AskableCollection(Collection):
    """An opened collection and the language model that answers from it."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        super().__init__(name, folder)
        self._model: AnsweringModel | None = None

    def ask(self, question: str, model: str | None = None, earlier: Sequence[str] = (), k: int = PASSAGES) -> Answer:
        """The answer with its citations, as `settle ask` gives it; `str()` of it is for reading.

        model: a run, a model of the store or a .gguf file, loaded at the first question and kept until `close`;
        `none` only quotes. earlier: questions that this one may refer to. Raises SettleError.
        """
        if self._model is not None and self._model.requested != model:
            self._model.close()
            self._model = None
        self._model = self._model or AnsweringModel(self, model)
        retrieval = retrieve(self, question, earlier, k)
        engine = self._model.engine() if retrieval.evidence.is_sure else None
        return finish_answer(stream_answer(self, engine, retrieval))

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
        super().close()
