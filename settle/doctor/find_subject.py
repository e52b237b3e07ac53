"""From what a person names to what the doctor looks at."""

from collections.abc import Sequence
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.base.run import Run
from settle.doctor.answerers.local_model import LocalModel
from settle.doctor.answerers.served_model import Door, is_address, open_server
from settle.doctor.answerers.web import Web
from settle.doctor.exchanges.chat import Chat
from settle.doctor.exchanges.read_transcript import read_transcript
from settle.doctor.histories.read_history import find_history, read_history
from settle.doctor.subject import Running, Subject
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.resolve import find_run, is_collection, resolve_gguf
from settle.retrieve.answer.answering_model import NONE
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.collection_folder import CollectionFolder
from settle.wire.exchange import Exchange

NO_KEY = Door()


def find_subject(name: str | None, running: Running, transcript: Path | None = None, door: Door = NO_KEY) -> Subject:
    """What `name` stands for; this machine where there is none. transcript: a file of what was asked and answered, by
    `name` or by the model that it names itself. door: to a server. Raises UsageError when there is nothing of that
    name, DataError for a transcript in no known layout, RunError for a server that does not answer, and what `resolve`
    raises."""
    if transcript is not None:
        return of_transcript(transcript, name, running, door)
    if name is not None and is_address(name):
        return of_server(name, running, door)
    if name is None:
        return Subject("machine", "this machine", running=running)
    if is_collection(name):
        return of_collection(name, running, door.model)
    run = find_run(name)
    if run is not None:
        return of_run(run, name, running)
    path = Path(name).expanduser()
    if path.suffix != ".gguf" and find_history(path):
        return Subject("history", name, running=running, history=read_history(path))
    return of_model(resolve_gguf(name), name, running)


def of_collection(name: str, running: Running, model: str | None) -> Subject:
    """A collection, with the model that answers from it: the one that is named, else the one that it remembers."""
    reader = resolve_gguf(model) if model else _remembered(name)
    served = model or (reader.name if reader else None)
    return Subject(
        "collection", name, collection=CollectionFolder(name).path, running=running, served=served, reader=reader
    )


def _remembered(collection: str) -> ModelRef | None:
    with Collection(collection) as opened:
        name = opened.catalogue.settings.get("model", str)
    try:
        return resolve_gguf(name) if name and name != NONE else None
    except SettleError:
        return None  # it is gone, which `settle ask` says


def of_server(address: str, running: Running, door: Door) -> Subject:
    """A server of others, with what it answers to short questions."""
    server = open_server(Web(address, door.key_of(address)), door.model)
    chat = Chat(tuple(server.probes()), server)
    return Subject("server", address, running=running, chat=chat, served=server.model.name)


def of_transcript(path: Path, name: str | None, running: Running, door: Door) -> Subject:
    """Recorded exchanges, and the model that answers them again where it is known."""
    exchanges = read_transcript(path).exchanges
    if name is not None and is_address(name):
        asked_of = next((exchange.request.model for exchange in exchanges if exchange.request.model), None)
        server = open_server(Web(name, door.key_of(name)), door.model, asked_of)
        chat, served = Chat(exchanges, server), server.model.name
        return Subject("transcript", str(path), running=running, chat=chat, answered_by=name, served=served)
    model = resolve_gguf(name) if name is not None else _named_in(exchanges)
    asked = [exchange.request.context for exchange in exchanges if exchange.request.context]
    context = running.context or max(asked, default=None)
    answerer = LocalModel(model, context, running.threads) if model else None
    chat, base = Chat(exchanges, answerer), _base(model)
    return Subject("transcript", str(path), None, model, base, running=running, chat=chat, answered_by=name)


def _named_in(exchanges: Sequence[Exchange]) -> ModelRef | None:
    """The model of this machine that the requests themselves name."""
    for name in {exchange.request.model: None for exchange in exchanges if exchange.request.model}:
        try:
            return resolve_gguf(name)
        except SettleError:
            continue
    return None


def of_run(run: Run, name: str, running: Running) -> Subject:
    """A run, with the model that it made where it made one that can be loaded."""
    try:
        model = resolve_gguf(f"run:{run.name}")
    except SettleError:
        model = None
    return Subject("run", name, run=run, model=model, base=_base(model), running=running)


def of_model(model: ModelRef, name: str, running: Running) -> Subject:
    """A model by name or a file. Raises FormatError for a file that is not sound."""
    if model.weights.suffix != ".gguf":
        raise UsageError(f"{name} is not GGUF", "name a model of the store, or a .gguf file")
    read_facts(model.weights)  # a file that is not sound is said once, and no check looks at it
    return Subject("model", name, model=model, base=_base(model), running=running)


def _base(model: ModelRef | None) -> ModelRef | None:
    return model.base if model is not None and model.kind == "adapter" else None
