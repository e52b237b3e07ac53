"""Deleting what is on this machine: runs, what a finished run no longer needs, and models of the store."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.run import Run
from settle.base.words.amounts import disk_size
from settle.library.resolve import all_refs
from settle.library.run_models import models_of
from settle.library.store import store

WORKING_FOLDERS = ("checkpoints", "student", "teacher")  # of a run: what only resuming it reads


def confirm(question: str) -> bool:
    """Whether the person agrees, asked on a terminal; True where nobody can be asked, as in a script."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`; those of other places that it links to are not counted."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def prunable_size(run: Run) -> int:
    """Bytes that `prune` would free: 0 for a run that is not finished."""
    return sum(folder_size(folder) for folder in _working_folders(run))


def prune(run: Run) -> int:
    """Delete the checkpoints and working files of a finished run, and return the bytes freed.

    The exported model, the card and the records stay. The student of a distillation stays where an adapter is served
    over it.
    """
    freed = prunable_size(run)
    for folder in _working_folders(run):
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def prune_runs(names: Sequence[str], yes: bool, events: Events) -> None:
    """Prune these finished runs, or all of them. Raises UsageError for a run that is not finished."""
    runs = [Run.find(name) for name in names] or [run for run in Run.all() if run.status == "finished"]
    for run in runs:
        if run.status != "finished":
            raise UsageError(
                f"{run.name} is not finished and needs its checkpoints",
                f"`settle resume {run.name}` finishes it, `settle runs remove {run.name}` deletes it",
            )
    sizes = {run.name: prunable_size(run) for run in runs}
    total = sum(sizes.values())
    if total and not yes and not confirm(f"delete {disk_size(total)} of checkpoints of {_listed(sizes)}?"):
        events.emit(Say(text="nothing was deleted"))
        return
    freed = {}
    for run in runs:
        with run.lock():
            freed[run.name] = prune(run)
    kept = f"{disk_size(sum(freed.values()))} freed; the models and records of the runs are kept"
    events.emit(Say(text=kept if total else "there is nothing to prune"))
    events.emit(ResultReady(result={"pruned": freed, "bytes": sum(freed.values())}))


def remove_runs(names: Sequence[str], yes: bool, events: Events) -> None:
    """Delete these runs with everything they made, after asking on a terminal. Raises UsageError, RunError."""
    runs = [Run.find(name) for name in dict.fromkeys(names)]
    sizes = {run.name: folder_size(run.path) for run in runs}
    if not yes and not confirm(f"delete {_listed(sizes)} with the models made ({disk_size(sum(sizes.values()))})?"):
        events.emit(Say(text="nothing was deleted"))
        return
    for run in runs:
        with run.lock():
            shutil.rmtree(run.path)
        events.emit(Say(text=f"removed {run.name}: {disk_size(sizes[run.name])} freed"))
    events.emit(ResultReady(result={"removed": list(sizes), "bytes": sum(sizes.values())}))


def remove_model(name: str, yes: bool, events: Events) -> None:
    """Delete a model of the store, after asking on a terminal. The files of a linked model stay where they are.

    Raises UsageError for an unknown name, and for a base that adapters need unless `yes`.
    """
    folder = store() / name.removeprefix("store:")
    if folder.parent != store() or not (folder / "model.json").is_file():
        of_run = Run.named(name) is not None
        fix = f"`settle runs remove {name}` deletes the run" if of_run else "`settle models` lists those there are"
        raise UsageError(f"there is no pulled model {name!r}", fix)
    try:
        refs = all_refs()
    except SettleError:
        refs = []
    adapters = sorted({ref.name for ref in refs if ref.kind == "adapter" and ref.weights.is_relative_to(folder)})
    if adapters and not yes:
        raise UsageError(f"{_listed(adapters)} cannot run without {folder.name}", "add --yes to remove it all the same")
    size = folder_size(folder)
    if not yes and not confirm(f"delete the model {folder.name} ({disk_size(size)})?"):
        events.emit(Say(text="nothing was deleted"))
        return
    shutil.rmtree(folder)
    events.emit(Say(text=f"removed {folder.name}: {disk_size(size)} freed"))
    events.emit(ResultReady(result={"removed": folder.name, "bytes": size}))


def _working_folders(run: Run) -> list[Path]:
    """Return the folders that only resuming the run reads; none while it is not finished."""
    if not (run.path / "result.json").exists():
        return []
    try:
        bases = [Path(model.base) for model in models_of(run) if model.base]
    except SettleError:
        return []  # what its model needs is not known
    folders = [run.path / name for name in WORKING_FOLDERS]
    return [f for f in folders if f.is_dir() and not any(base.is_relative_to(f.resolve()) for base in bases)]


def _listed(names: Sequence[str] | dict[str, int]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
