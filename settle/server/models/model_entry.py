"""A model under the name that clients ask for."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from settle.base.child.python_command import module_command
from settle.library.store import stamp_of
from settle.wire.errors import ApiError

CONVERT_SECONDS = 1800


@dataclass(frozen=True)
class ModelEntry:
    """id: the name that clients ask for; adapters are called `base:adapter`. path: of the GGUF file. is_converted:
    whether that file is made from a model in Hugging Face's layout when it is first used. aliases: other names for it.
    collection: of documents that it answers from (see `document_models.py`), "" for the model itself."""

    id: str
    path: Path
    adapter: Path | None = None
    base: str = ""
    aliases: tuple[str, ...] = ()
    origin: str = ""
    collection: str = ""
    is_converted: bool = False

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        file = self.adapter or self.path
        return int(file.stat().st_mtime) if file.exists() else 0

    def require_no_documents(self, why: str) -> None:
        """Raises ApiError for a collection of documents, which supports chats only."""
        if self.collection:
            message = f"{self.id} answers questions in chats, from documents: {why}"
            raise ApiError(400, message, "wrong_model", "model")


def file_stamp(entry: ModelEntry, path: Path) -> str:
    """Raises ApiError when a file of the entry is gone."""
    try:
        return stamp_of(path)
    except OSError:
        raise ApiError(503, f"the file of {entry.id} is gone: {path.name}", "model_broken", "model") from None


def make_file(entry: ModelEntry) -> None:
    """Converts a model that has no GGUF file yet, in a process of its own because it loads torch. Raises ApiError."""
    if entry.path.exists():
        return
    if not entry.is_converted:
        raise ApiError(503, f"the file of {entry.id} is gone: {entry.path.name}", "model_broken", "model")
    command = module_command("settle.library.convert", entry.id.removeprefix("store:"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_SECONDS)
    if done.returncode or not entry.path.exists():
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ApiError(503, f"{entry.id} cannot be converted to GGUF: {reason[0][:300]}", "model_broken", "model")
