"""What the doctor looks at: this machine, a run, a model, a chat, a collection, a history of another trainer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from settle.base.run import Run
from settle.doctor.answerer import Answerer
from settle.doctor.history import History
from settle.library.reference import ModelRef
from settle.wire.exchange import Exchange, Reply


@dataclass(frozen=True)
class ChatRecord:
    """answerer: None where the model is not known, so that nothing can be asked again."""

    exchanges: tuple[Exchange, ...]
    answerer: Answerer | None = None

    @property
    def answered(self) -> Iterator[tuple[int, Exchange, Reply]]:
        """Exchanges with an answer, and their places."""
        for at, exchange in enumerate(self.exchanges):
            if exchange.reply is not None:
                yield at, exchange, exchange.reply


@dataclass(frozen=True)
class Running:
    """How a user runs a model, where that differs from how settle would."""

    context: int | None = None  # tokens of a prompt and its answer
    threads: int | None = None  # that compute
    cache: str = "f16"  # type of the keys and values that are kept
    room: int | None = None  # bytes of memory that it may take; what is free here where None
    room_on_disk: int | None = None  # bytes; what is free here where None
    load: float | None = None  # programs that want to compute; as measured here where None
    sampling: Mapping[str, object] = field(default_factory=dict)  # how tokens are drawn, in llama.cpp's words
    engine: Path | None = None  # folder with another llama.cpp than the installed one, of version `engine_version`
    engine_version: str | None = None
    passages: int = 4  # that an answer from documents is made from


@dataclass(frozen=True)
class Subject:
    """Something that is looked at; each kind holds what the checks of that kind need."""

    name: str  # as the user gave it
    running: Running = field(default=Running(), kw_only=True)

    @property
    def views(self) -> "tuple[Subject, ...]":
        """The subject itself, and what else checks can look at in it."""
        return (self,)

    @property
    def named(self) -> str | None:
        """What the user named to look at it."""
        return self.name

    @property
    def served(self) -> str | None:
        """The model of a server, or the one that answers from a collection, by name."""
        return None

    def close(self) -> None:
        """End whatever answers again, if it is running."""


@dataclass(frozen=True)
class ThisMachine(Subject):
    """The machine that settle runs on, with its store and runs."""

    name: str = "this machine"

    @property
    def named(self) -> None:
        return None


@dataclass(frozen=True)
class ModelFile(Subject):
    """A GGUF file, with the adapter over it."""

    model: ModelRef


@dataclass(frozen=True)
class TrainingRun(Subject):
    """A run, which need not have made a model."""

    run: Run


@dataclass(frozen=True)
class ExportedRun(TrainingRun):
    """A run whose model can be loaded."""

    model: ModelRef

    @property
    def views(self) -> tuple[Subject, ...]:
        return (self, ModelFile(self.name, self.model, running=self.running))


@dataclass(frozen=True)
class AskedModel(Subject):
    """What a model was asked and answered, recorded or by a server."""

    chat: ChatRecord
    model: ModelRef | None = None  # that answers again, where it is a file of this machine

    @property
    def views(self) -> tuple[Subject, ...]:
        if self.model is None:
            return (self,)
        return (self, ModelFile(self.name, self.model, running=self.running))

    def close(self) -> None:
        if self.chat.answerer is not None:
            self.chat.answerer.close()


@dataclass(frozen=True)
class RecordedChat(AskedModel):
    """A file of requests and answers, and the model or server that the user named beside it."""

    answered_by: str | None = None
    asked_again: str | None = None  # the model of that server

    @property
    def named(self) -> str | None:
        return self.answered_by

    @property
    def served(self) -> str | None:
        return self.asked_again


@dataclass(frozen=True)
class ServedChat(AskedModel):
    """A server, with what its model answers to short questions."""

    served_model: str = field(kw_only=True)

    @property
    def served(self) -> str | None:
        return self.served_model


@dataclass(frozen=True)
class IndexedDocuments(Subject):
    """A collection, and the model that answers from it."""

    collection: Path  # folder of the index
    reader: ModelRef | None = None
    answered_by: str | None = None

    @property
    def served(self) -> str | None:
        return self.answered_by


@dataclass(frozen=True)
class LoggedHistory(Subject):
    """The history of another trainer's run."""

    history: History
