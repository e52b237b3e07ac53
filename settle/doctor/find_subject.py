"""From what a user names to what the doctor looks at."""

from collections.abc import Sequence
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.doctor.answerer import LocalModel
from settle.doctor.history import find_history, read_history
from settle.doctor.read_transcript import read_transcript
from settle.doctor.served_model import Door, is_address, open_server
from settle.doctor.subject import (
    ChatRecord,
    ExportedRun,
    IndexedDocuments,
    LoggedHistory,
    ModelFile,
    RecordedChat,
    Running,
    ServedChat,
    Subject,
    ThisMachine,
    TrainingRun,
)
from settle.doctor.web import Web
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.resolve import find_run, is_collection, resolve_gguf
from settle.retrieve.answer.answering_model import NONE
from settle.retrieve.index.collection import Collection, CollectionFolder
from settle.wire.exchange import Exchange

NO_KEY = Door()


def find_subject(name: str | None, running: Running, transcript: Path | None = None, door: Door = NO_KEY) -> Subject:
    """Return what `name` stands for; this machine where there is none.

    transcript: a file of what was asked and answered, by `name` or by the model that it names itself. door: to a
    server. Raises UsageError when there is nothing of that name, DataError for a transcript in no known layout,
    RunError for a server that does not answer, and what `resolve` raises.
    """
    if transcript is not None:
        return of_transcript(transcript, name, running, door)
    if name is None:
        return ThisMachine(running=running)
    if is_address(name):
        server = open_server(Web(name, door.key_of(name)), door.model)
        return ServedChat(
            name, ChatRecord(tuple(server.probes()), server), running=running, served_model=server.model.name
        )
    if is_collection(name):
        reader = resolve_gguf(door.model) if door.model else _remembered(name)
        answered_by = door.model or (reader.name if reader else None)
        return IndexedDocuments(name, CollectionFolder(name).path, reader, answered_by, running=running)
    run = find_run(name)
    if run is not None:
        try:
            return ExportedRun(name, run, resolve_gguf(f"run:{run.name}"), running=running)
        except SettleError:
            return TrainingRun(name, run, running=running)
    path = Path(name).expanduser()
    if path.suffix != ".gguf" and find_history(path):
        return LoggedHistory(name, read_history(path), running=running)
    model = resolve_gguf(name)
    if model.weights.suffix != ".gguf":
        raise UsageError(f"{name} is not GGUF", "name a model of the store, or a .gguf file")
    read_facts(model.weights)  # a file that is not sound is said once, and no check looks at it
    return ModelFile(name, model, running=running)


def _remembered(collection: str) -> ModelRef | None:
    with Collection(collection) as opened:
        name = opened.catalogue.settings.get("model", str)
    try:
        return resolve_gguf(name) if name and name != NONE else None
    except SettleError:
        return None  # it is gone, which `settle ask` says


def of_transcript(path: Path, name: str | None, running: Running, door: Door) -> RecordedChat:
    """Return recorded exchanges, and the model that answers them again where it is known."""
    exchanges = read_transcript(path)
    if name is not None and is_address(name):
        asked_of = next((exchange.request.model for exchange in exchanges if exchange.request.model), None)
        server = open_server(Web(name, door.key_of(name)), door.model, asked_of)
        return RecordedChat(str(path), ChatRecord(exchanges, server), None, name, server.model.name, running=running)
    model = resolve_gguf(name) if name is not None else _named_in(exchanges)
    asked = [exchange.request.context for exchange in exchanges if exchange.request.context]
    context = running.context or max(asked, default=None)
    answerer = LocalModel(model, context, running.threads) if model else None
    return RecordedChat(str(path), ChatRecord(exchanges, answerer), model, name, running=running)


def _named_in(exchanges: Sequence[Exchange]) -> ModelRef | None:
    """Return the model of this machine that the requests themselves name."""
    for name in {exchange.request.model: None for exchange in exchanges if exchange.request.model}:
        try:
            return resolve_gguf(name)
        except SettleError:
            continue
    return None
