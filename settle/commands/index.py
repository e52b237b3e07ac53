"""settle index: folders of documents, made ready to be asked, and kept up to date."""

import dataclasses
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.choice import Choice, choice
from settle.base.errors import DataError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.registry import part
from settle.base.run import free_name
from settle.base.stop_signals import Stopping
from settle.commands import Command
from settle.library.resolve import resolve_gguf

if TYPE_CHECKING:
    from settle.infer.client import LlamaClient
    from settle.retrieve.index.collection import Collection
    from settle.retrieve.index.update_index import Report

CONTEXT = 4096  # tokens of the model that asks and answers
FAMILIES = ("embedder", "store", "chunker")
MOST_SHOWN = 30  # documents that failed; --json tells them all


class Index(Command):
    """Index folders of documents under a name; again, and only what has changed is read.

    PATHS are folders and files; the first may be the name of a collection that is there, which is brought up to date
    and takes the others in. Without any, the collections are listed. What nothing can be read of is told with the
    reason, and the rest goes on. Ctrl-C at any time: what was indexed is kept, and the same command goes on.
    """

    positional: ClassVar[tuple[str, ...]] = ("paths",)

    paths: list[str] = Field([], description="folders and files, or the name of a collection")
    name: str | None = Field(None, description="name of the collection; from the folder when not given")
    watch: bool = Field(False, description="stay, and index what changes as soon as it does; Ctrl-C ends it")
    anew: bool = Field(False, description="make it again from the documents; it answers as it is until that is done")
    without: list[str] = Field([], description="a folder or file that it follows no more")
    delete: bool = Field(False, description="remove the collection; the documents stay where they are")
    check: bool = Field(
        False, description="ask it questions made from its documents, and tell what is found and refused"
    )
    questions: int = Field(300, gt=0, description="that --check asks")
    model: str | None = Field(
        None, description="asks some of --check's questions and answers some, to check citations; none if not given"
    )
    embedder: Choice = choice(
        "retrieve/index/embedders", description="what turns passages into vectors; minilm for a new collection"
    )
    chunker: Choice = choice(
        "retrieve/index/chunkers", description="what cuts documents into passages; structure for a new collection"
    )
    store: Choice = choice("retrieve/index/stores", description="what stores vectors; lancedb for a new collection")

    def run(self, events: Events) -> int:
        try:
            return self._run(events)
        except ModuleNotFoundError as e:
            raise UsageError(f"indexing documents needs {e.name}", "pip install 'settle-lm[rag]'") from None

    def _run(self, events: Events) -> int:
        from settle.retrieve.index.collection import Collection, delete, names

        if not self.model_fields_set:
            _list(events)
            return 0
        if not self.check and self.model_fields_set & {"questions", "model"}:
            raise UsageError("--questions and --model say how to check", "add --check")
        if self.model:
            resolve_gguf(self.model)  # a name that nothing has is refused before anything is read
        name, more = self._target(events)
        is_new = name not in names()
        if is_new and not more:
            Collection(name)  # says which there are
        if self.delete:
            delete(name)
            events.emit(Say(text=f"{name} is deleted; its documents are where they were"))
            events.emit(ResultReady(result={"deleted": name}))
            return 0
        with Stopping():
            try:
                report = self._indexed(name, more, events)
                _tell(name, report, events)
                if self.check:
                    self._check(name, events)
                if self.watch:
                    _follow(name, events)
            except BaseException as e:
                if isinstance(e, KeyboardInterrupt):
                    events.emit(Say(text="stopped; what was indexed is kept, and the same command goes on"))
                if is_new:
                    _forget_empty(name)
                raise
        return 0

    def _target(self, events: Events) -> tuple[str, list[Path]]:
        """The collection that is meant, and the paths to add to it."""
        from settle.retrieve.index.collection import names

        given, name = list(self.paths), self.name
        if name is None and given and given[0] in names():
            name = given.pop(0)
            if Path(name).exists():
                events.emit(Warn(text=f"{name} is taken for the collection of that name; the folder is ./{name}"))
        roots = [_path(path) for path in given]
        if name is None and not roots:
            raise UsageError("which collection is meant?", "settle index NAME; `settle index` lists them")
        return name or _name_for(roots[0]), roots

    def _indexed(self, name: str, more: list[Path], events: Events) -> "Report":
        from settle.retrieve.index.collection import Collection
        from settle.retrieve.index.update_index import update

        with Collection.create(name) as collection:
            was_empty = not collection.catalogue.counts()["documents"]
            roots = self._roots(collection, more)
            if self.anew:
                _see(collection, roots)
                with collection.renewed(*self._parts(collection, events)) as new:
                    new.follow(roots)
                    return _not_empty(update(new, events))
            if not self._is_made_so(collection):
                collection.decide(*self._parts(collection, events))
            collection.follow(roots)
            report = update(collection, events)
            return _not_empty(report) if was_empty else report

    def _check(self, name: str, events: Events) -> None:
        from settle.retrieve.check.check import check
        from settle.retrieve.check.check_report import keep, tell
        from settle.retrieve.index.collection import Collection

        with Collection(name) as collection, _started(self.model) as model:
            checked = check(collection, events, self.questions, model)
            tell(checked, events)
            picture = keep(checked, collection.folder)
        events.emit(Say(text=f"as a picture: {picture}"))
        events.emit(ResultReady(result=checked.to_json() | {"picture": str(picture)}))

    def _roots(self, collection: "Collection", more: list[Path]) -> list[Path]:
        """What it follows from now on."""
        roots = collection.roots
        for given in self.without:
            path = Path(given).expanduser()
            root = next((r for r in roots if r in (path.absolute(), path.resolve())), None)
            if root is None:
                known = ", ".join(map(str, roots)) or "nothing"
                raise UsageError(f"{collection.name} does not follow {given}", f"it follows {known}")
            roots.remove(root)
        roots = list(dict.fromkeys([*roots, *more]))
        if not roots:
            raise UsageError(f"{collection.name} would follow nothing", f"`settle index {collection.name} --delete`")
        return roots

    def _is_made_so(self, collection: "Collection") -> bool:
        """Whether it is made, with all that is asked for; said without loading any part."""
        made = collection.made
        return made is not None and all(
            str(getattr(made, family).get(key)) == str(value)
            for family in FAMILIES
            for key, value in getattr(self, family).to_json().items()
        )

    def _parts(self, collection: "Collection", events: Events) -> list[Any]:
        """Embedder, store and chunker: as asked, or else as the collection is made, or else the usual ones. What the
        embedder needs and is not here yet is got."""
        from settle.retrieve.index.collection import DEFAULTS

        made = collection.made
        parts: list[Any] = []
        for family in FAMILIES:
            before = dict(getattr(made, family)) if made else {}
            usual = before.pop("name", DEFAULTS[family])
            asked: Choice = getattr(self, family).named(usual)
            settings = asked.over(before if asked.name == usual else {}).settings
            parts.append(part(asked.family, str(asked.name)).model_validate(settings))
        parts[0].prepare(events)
        return parts


def _started(name: str | None) -> AbstractContextManager["LlamaClient | None"]:
    """A model that runs until the block ends, or none."""
    if name is None:
        return nullcontext()
    from settle.infer.engine import Engine

    model = resolve_gguf(name)
    return Engine(model.weights, CONTEXT, adapter=model.adapter)


def _path(given: str) -> Path:
    """A folder or file, as it is called on this machine."""
    from settle.documents.reader_pool import reader_of
    from settle.retrieve.index.collection import names

    path = Path(given).expanduser()
    if not path.exists():
        known = ", ".join(names())
        raise UsageError(
            f"there is no folder or file {given!r}", f"collections: {known}" if known else "check the path"
        )
    if path.is_file() and reader_of(path.name) is None:
        raise UsageError(f"no reader knows {path.name}", f"files like it are not read: {path.suffix or 'no suffix'}")
    return path.resolve()


def _name_for(root: Path) -> str:
    """Of the collection that follows this folder already, or a new one made from what the folder is called."""
    from settle.retrieve.index.collection import Collection, names

    taken = names()
    for name in taken:
        with Collection(name) as collection:
            if root in collection.roots:
                return name
    return free_name(root.stem if root.is_file() else root.name, taken)


def _see(collection: "Collection", roots: list[Path]) -> None:
    """Raises DataError where making it anew would lose the documents of a folder that only cannot be seen now."""
    from settle.retrieve.index.changes import unseen

    for root, why in unseen(roots, collection.catalogue.stamps()).items():
        fix = f"mount it, or `settle index {collection.name} --anew --without {root}`"
        raise DataError(f"{root}: {why}; the collection stays as it is", fix)


def _not_empty(report: "Report") -> "Report":
    if not report.documents:
        raise DataError("there is no document there", _left_out(report.left_out) or "give another folder")
    return report


def _forget_empty(name: str) -> None:
    """A collection that nothing came into is none."""
    from settle.retrieve.index.collection import Collection, delete, names

    if name in names():
        with Collection(name) as collection:
            is_empty = not collection.catalogue.counts()["documents"]
        if is_empty:
            delete(name)


def _follow(name: str, events: Events) -> None:
    from settle.retrieve.index.collection import Collection
    from settle.retrieve.index.watch import follow

    with Collection(name) as collection:
        events.emit(Say(text=f"following {', '.join(map(str, collection.roots))}; Ctrl-C ends it"))
        follow(collection, events, lambda report: _tell_changes(name, report, events))


def _tell(name: str, report: "Report", events: Events) -> None:
    """What was done, what could not be, and what was left out."""
    from settle.retrieve.index.collection import Collection

    for root, why in report.kept:
        fix = f"`settle index {name} --without {root}` lets them go"
        events.emit(Warn(text=f"{root}: {why}. Its documents stay as they were; {fix}"))
    if report.failed:
        shown = report.failed[:MOST_SHOWN]
        more = len(report.failed) - len(shown)
        note = f"and {more:,} more; --json tells them all" if more else ""
        events.emit(Listing(columns=("could not be read", "why"), rows=[list(row) for row in shown], note=note))
    if report.left_out:
        events.emit(Say(text=f"left out: {_left_out(report.left_out)}"))
    events.emit(Say(text=f"{name}: {_done(report)}"))
    with Collection(name) as collection:
        told = dataclasses.asdict(report) | {"name": name, "bytes": collection.num_bytes}
    told["failed"] = [{"path": path, "why": why} for path, why in report.failed]
    told["kept"] = [{"root": root, "why": why} for root, why in report.kept]
    events.emit(ResultReady(result=told))


def _tell_changes(name: str, report: "Report", events: Events) -> None:
    if report.added or report.changed or report.moved or report.deleted:
        events.emit(Say(text=f"{name}: {_done(report)}"))


def _done(report: "Report") -> str:
    kinds = ("added", "changed", "moved", "deleted", "unchanged")
    parts = [f"{number:,} {kind}" for kind in kinds if (number := getattr(report, kind))]
    parts += [f"{len(report.failed):,} could not be read"] if report.failed else []
    return f"{', '.join(parts) or 'nothing'}; {report.documents:,} documents, {report.passages:,} passages"


def _left_out(reasons: dict[str, int]) -> str:
    often = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{number:,} {reason}" for reason, number in often)


def _list(events: Events) -> None:
    from settle.retrieve.index.collection import Collection, names

    told = []
    for name in names():
        try:
            with Collection(name) as collection:
                told.append(_facts(collection))
        except SettleError as e:
            events.emit(Warn(text=f"{name}: {e.what}"))
    columns = ("name", "documents", "passages", "size", "age", "embedder", "follows")
    rows = [
        [
            one["name"],
            one["documents"],
            one["passages"],
            {"value": one["bytes"], "unit": "bytes"},
            {"value": one["age"], "unit": "s"},
            one["embedder"],
            ", ".join(one["roots"]),
        ]
        for one in told
    ]
    hint = 'ask one: `settle ask NAME "…"`' if told else "no collections yet; make one: `settle index FOLDER`"
    events.emit(Listing(columns=columns, rows=rows, note=hint))
    events.emit(ResultReady(result={"collections": told}))


def _facts(collection: "Collection") -> dict[str, Any]:
    """age: seconds since it was last brought up to date."""
    counts, made, indexed = collection.catalogue.counts(), collection.made, collection.catalogue.setting("indexed")
    return {
        "name": collection.name,
        "documents": counts["documents"],
        "passages": counts["passages"],
        "bytes": collection.num_bytes,
        "age": time.time() - indexed if indexed else None,
        "embedder": made.embedder["name"] if made else "",
        "roots": [str(root) for root in collection.roots],
    }
