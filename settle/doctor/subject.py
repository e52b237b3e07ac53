"""What the doctor looks at: this machine, a run, a model, a transcript, a server of others, a collection, a history."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from settle.base.run import Run
from settle.doctor.exchanges.chat import Chat
from settle.doctor.histories.history import History
from settle.library.reference import ModelRef

Kind = Literal["machine", "run", "model", "transcript", "server", "collection", "history"]


@dataclass(frozen=True)
class Running:
    """How a person runs a model, where it is not as settle would. context: tokens of a prompt and its answer. threads:
    that compute. cache: the type of the keys and values that are kept. room, room_on_disk: bytes of memory that it may
    take, and of disk; what is free here where None. load: programs that want to compute; as measured here where None.
    sampling: llama.cpp's words for how tokens are drawn. engine: a
    folder with another llama.cpp than the installed one, of the version `engine_version`. passages: that an answer from
    documents is made from."""

    context: int | None = None
    threads: int | None = None
    cache: str = "f16"
    room: int | None = None
    room_on_disk: int | None = None
    load: float | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    engine: Path | None = None
    engine_version: str | None = None
    passages: int = 4


@dataclass(frozen=True)
class Subject:
    """One thing that is looked at; a check uses what it has. name: as the person gave it. model: a GGUF file, with the
    adapter over it. base: what it was tuned from, or None. collection: the folder of an index. chat: what was asked and
    answered, recorded or by a server. history: of another trainer's run. answered_by: the model or server that the
    person named beside a transcript. served: the model of a server. reader: the model that answers from a collection,
    whose name is `served` then."""

    kind: Kind
    name: str
    run: Run | None = None
    model: ModelRef | None = None
    base: ModelRef | None = None
    collection: Path | None = None
    chat: Chat | None = None
    history: History | None = None
    answered_by: str | None = None
    served: str | None = None
    reader: ModelRef | None = None
    running: Running = Running()

    def close(self) -> None:
        """Ends the model that answers again, if it is running."""
        if self.chat is not None and self.chat.answerer is not None:
            self.chat.answerer.close()
