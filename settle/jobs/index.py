"""The index job: which collection · which folders · which parts · update · report · check · watch."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from settle.base.choice import Choice
from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn, WorkStarted
from settle.base.registry import Part
from settle.base.run import free_name
from settle.base.stop_signals import Stopping
from settle.documents.readers import reader_of
from settle.infer.client import LlamaClient
from settle.infer.engine import Engine
from settle.jobs.settings import IndexSettings
from settle.library.resolve import resolve_gguf
from settle.retrieve.index.changes import unseen
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.collection import (
    Collection,
    CollectionFolder,
    IndexParts,
    PartRecord,
    collection_names,
    create,
    delete,
    rebuilt,
)
from settle.retrieve.index.embedders import Embedder
from settle.retrieve.index.list_collections import list_collections, list_status
from settle.retrieve.index.stores import Store
from settle.retrieve.index.update_index import UpdateReport, follow, update

CONTEXT = 4096  # tokens of the model that writes questions and answers
P = TypeVar("P", bound=Part)
MOST_SHOWN = 30  # unreadable documents; --json has them all


def index(settings: IndexSettings, events: Events) -> str | None:
    """Run the job and return the name of the collection; None where collections were listed or one was deleted."""
    if not settings.model_fields_set:
        list_collections(events)
        return None
    if settings.status:
        if others := settings.model_fields_set - {"status", "paths", "name"}:
            raise UsageError(f"--status changes nothing, so it goes without --{min(others)}", "leave one of them out")
        list_status([*settings.paths, *filter(None, [settings.name])], events)
        return None
    if not settings.check and settings.model_fields_set & {"questions", "model"}:
        raise UsageError("--questions and --model only matter to a check", "add --check")
    if settings.model:
        resolve_gguf(settings.model)  # an unknown name is an error before anything is read
    name, paths = which_collection(settings, events)
    is_new = name not in collection_names()
    if is_new and not paths:
        Collection(name)  # raises, naming the collections that exist
    if settings.delete:
        delete(name)
        events.emit(Say(text=f"{name} is deleted; its documents are where they were"))
        events.emit(ResultReady(result={"deleted": name}))
        return None
    events.emit(WorkStarted(what="index", name=name, path=str(CollectionFolder(name).path)))
    with Stopping():
        try:
            report = bring_up_to_date(name, paths, settings, events)
            tell_report(name, report, events)
            if settings.check:
                check_collection(name, settings, events)
            if settings.watch:
                watch(name, events)
            _require_named(paths, report)
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                events.emit(Say(text="stopped; what was indexed is kept, and the same command continues"))
            if is_new:
                _delete_if_empty(name)
            raise
    return name


# Which collection, which folders


def which_collection(settings: IndexSettings, events: Events) -> tuple[str, list[Path]]:
    """Return the collection that is meant, and the paths to add to it."""
    arguments, name = list(settings.paths), settings.name
    if "" in (*arguments, name):
        raise UsageError("a name or path is empty", "perhaps a variable is not set; `settle index .` is this folder")
    if name is None and arguments and arguments[0] in collection_names():
        name = arguments.pop(0)
        if Path(name).exists():
            events.emit(Warn(text=f"{name} is taken for the collection of that name; the folder is ./{name}"))
    paths = [_existing_path(path) for path in arguments]
    if name is None and not paths:
        raise UsageError("no collection is named", "settle index NAME; `settle index` lists them")
    return name or _name_for(paths[0]), paths


def _existing_path(argument: str) -> Path:
    path = Path(argument).expanduser()
    if not path.exists():
        known = ", ".join(collection_names())
        raise UsageError(
            f"there is no folder or file {argument!r}", f"collections: {known}" if known else "check the path"
        )
    if path.is_file() and reader_of(path.name) is None:
        raise UsageError(f"no reader knows {path.name}", f"files like it are not read: {path.suffix or 'no suffix'}")
    return path.resolve()


def _name_for(root: Path) -> str:
    """Return the collection that follows this folder already, or a free name made from the folder's."""
    taken = collection_names()
    for name in taken:
        with Collection(name) as collection:
            if root in collection.roots:
                return name
    return free_name(root.stem if root.is_file() else root.name, taken)


def followed_roots(collection: Collection, added: list[Path], without: list[str]) -> list[Path]:
    """Return the folders and files that the collection follows from now on."""
    roots = collection.roots
    for argument in without:
        path = Path(argument).expanduser()
        root = next((r for r in roots if r in (path.absolute(), path.resolve())), None)
        if root is None:
            known = ", ".join(map(str, roots)) or "nothing"
            raise UsageError(f"{collection.name} does not follow {argument}", f"it follows {known}")
        roots.remove(root)
    roots = list(dict.fromkeys([*roots, *added]))
    if not roots:
        raise UsageError(
            f"this would leave {collection.name} with no folders to index", f"`settle index {collection.name} --delete`"
        )
    return roots


# Which parts


def choose_parts(collection: Collection, settings: IndexSettings, events: Events) -> IndexParts:
    """Choose embedder, store and chunker: as asked, else as the collection was built, else the defaults.

    What the embedder needs and is not on this machine yet is pulled.
    """
    config = collection.config
    parts = IndexParts(
        _part(Embedder, settings.embedder, config.embedder if config else {"name": "minilm"}),
        _part(Store, settings.store, config.store if config else {"name": "lancedb"}),
        _part(Chunker, settings.chunker, config.chunker if config else {"name": "structure"}),
    )
    parts.embedder.prepare(events)
    return parts


def _part(contract: type[P], asked: Choice, record: PartRecord) -> P:
    """Return the part that was asked for, or the one of the record where none was named.

    The settings of the record hold unless others were asked for.
    """
    before = dict(record)
    name = str(before.pop("name"))
    asked = asked.named(name)
    return contract.make(str(asked.name), asked.over(before if asked.name == name else {}).settings)


def is_made_so(collection: Collection, settings: IndexSettings) -> bool:
    """Return whether the collection is made already, with all that is asked for; loads no part."""
    choices = {"embedder": settings.embedder, "store": settings.store, "chunker": settings.chunker}
    config = collection.config
    return config is not None and all(config.has(family, choice.to_json()) for family, choice in choices.items())


# Update, report


def bring_up_to_date(name: str, paths: list[Path], settings: IndexSettings, events: Events) -> UpdateReport:
    """Indexes what changed below the collection's folders, or all of it where it is rebuilt."""
    with create(name) as collection:
        was_empty = not collection.catalogue.counts()["documents"]
        roots = followed_roots(collection, paths, settings.without)
        if settings.anew:
            _require_visible(collection, roots)
            with rebuilt(collection, choose_parts(collection, settings, events)) as new:
                new.follow(roots)
                return _require_documents(update(new, events))
        if not is_made_so(collection, settings):
            collection.decide(choose_parts(collection, settings, events))
        collection.follow(roots)
        report = update(collection, events)
        return _require_documents(report) if was_empty else report


def _require_visible(collection: Collection, roots: list[Path]) -> None:
    """Raise DataError where rebuilding would lose the documents of a folder that only cannot be seen now."""
    for root, why in unseen(roots, collection.catalogue.documents.stamps()).items():
        fix = f"mount it, or `settle index {collection.name} --anew --without {root}`"
        raise DataError(f"{root}: {why}; the collection stays as it is", fix)


def _require_documents(report: UpdateReport) -> UpdateReport:
    if not report.documents and not report.failed:
        raise DataError("there is no document there", _left_out(report) or "give another folder")
    if not report.passages:
        path, why = report.failed[0]
        raise DataError(f"no document there could be read: {path}: {why}", "give a file that a program opens as it is")
    return report


def _require_named(paths: list[Path], report: UpdateReport) -> None:
    """Raise DataError where a file that was asked for by its name could not be read."""
    failed = dict(report.failed)
    for path in map(str, paths):
        if path in failed:
            fix = (
                "the rest is indexed; replace the file, or convert it to a format that can be read, and run this again"
            )
            raise DataError(f"{path} could not be read: {failed[path]}", fix)


def _delete_if_empty(name: str) -> None:
    """Delete a new collection that nothing came into."""
    if name in collection_names():
        with Collection(name) as collection:
            is_empty = not collection.catalogue.counts()["passages"]
        if is_empty:
            delete(name)


def tell_report(name: str, report: UpdateReport, events: Events) -> None:
    """Report what was done, what could not be read, and what was left out."""
    for root, why in report.kept:
        fix = f"`settle index {name} --without {root}` lets them go"
        events.emit(Warn(text=f"{root}: {why}. Its documents stay as they were; {fix}"))
    for heads, faults in ((("could not be read", "why"), report.failed), (("read", "but"), report.partly)):
        if faults:
            more = len(faults) - MOST_SHOWN
            note = f"and {more:,} more; --json has them all" if more > 0 else ""
            events.emit(Listing(columns=heads, rows=[list(row) for row in faults[:MOST_SHOWN]], note=note))
    if report.left_out:
        events.emit(Say(text=f"left out: {_left_out(report)}"))
    events.emit(Say(text=f"{name}: {_summary(report)}"))
    with Collection(name) as collection:
        result = dataclasses.asdict(report) | {"name": name, "bytes": collection.num_bytes}
    result["failed"] = [{"path": path, "why": why} for path, why in report.failed]
    result["partly"] = [{"path": path, "why": why} for path, why in report.partly]
    result["kept"] = [{"root": root, "why": why} for root, why in report.kept]
    events.emit(ResultReady(result=result))


def _summary(report: UpdateReport) -> str:
    numbers = {
        "added": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "deleted": report.deleted,
        "unchanged": report.unchanged,
        "could not be read": len(report.failed),
    }
    parts = [f"{number:,} {what}" for what, number in numbers.items() if number]
    now = (
        f"{n:,} {what}{'s' * (n != 1)}" for n, what in ((report.documents, "document"), (report.passages, "passage"))
    )
    return f"{', '.join(parts) or 'nothing'}; {', '.join(now)}"


def _left_out(report: UpdateReport) -> str:
    """Return the reasons with the number of files, the most frequent first; where they are few, with their names."""
    parts = []
    for reason, number in sorted(report.left_out.items(), key=lambda item: -item[1]):
        names = [Path(path).name for path in report.left_out_paths.get(reason, ())]
        parts.append(f"{number:,} {reason}" + (f" ({', '.join(names)})" if number == len(names) else ""))
    return ", ".join(parts)


# Check, watch


def check_collection(name: str, settings: IndexSettings, events: Events) -> None:
    """Evaluate retrieval and refusals, and keep the figures, a page and a picture with the collection."""
    # a check draws a picture and reads with the judge, which are slow to import
    from settle.retrieve.check.check_report import check_and_report

    with Collection(name) as collection, _running(settings.model) as model:
        result, picture = check_and_report(collection, events, settings.questions, model)
    events.emit(Say(text=f"as a picture: {picture}"))
    events.emit(ResultReady(result=result.to_json() | {"picture": str(picture)}))


def _running(name: str | None) -> AbstractContextManager[LlamaClient | None]:
    """Run a model until the block ends, or none."""
    if name is None:
        return nullcontext()
    model = resolve_gguf(name)
    return Engine(model.weights, CONTEXT, adapter=model.adapter)


def watch(name: str, events: Events) -> None:
    """Indexes changes as they happen, until Ctrl-C."""

    def tell_changes(report: UpdateReport) -> None:
        if report.added or report.changed or report.moved or report.deleted:
            events.emit(Say(text=f"{name}: {_summary(report)}"))

    with Collection(name) as collection:
        events.emit(Say(text=f"following {', '.join(map(str, collection.roots))}; Ctrl-C ends it"))
        follow(collection, events, tell_changes)
