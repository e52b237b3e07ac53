"""A model under the name that clients ask for."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from settle.base.python_command import module_command
from settle.library.store import stamp_of
from settle.wire.errors import ApiError

CONVERT_SECONDS = 1800


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be asked for."""

    id: str  # the name that clients ask for; adapters are called `base:adapter`
    path: Path  # of the GGUF file
    adapter: Path | None = None
    base: str = ""
    aliases: tuple[str, ...] = ()  # other names for it
    origin: str = ""
    collection: str = ""  # of documents that it answers from, "" for the model itself: see `document_models`
    is_converted: bool = False  # that file is made from a model in Hugging Face's layout when it is first used

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        file = self.adapter or self.path
        return int(file.stat().st_mtime) if file.exists() else 0

    def require_no_documents(self, why: str) -> None:
        """Refuse a collection of documents, which supports chats only. Raises ApiError."""
        if self.collection:
            message = f"{self.id} answers questions in chats, from documents: {why}"
            raise ApiError(400, message, "wrong_model", "model")


def file_stamp(entry: ModelEntry, path: Path) -> str:
    """Return the stamp of a file of the entry. Raises ApiError when it is gone."""
    try:
        return stamp_of(path)
    except OSError:
        raise ApiError(503, f"the file of {entry.id} is gone: {path.name}", "model_broken", "model") from None


def make_file(entry: ModelEntry) -> None:
    """Convert a model that has no GGUF file yet, in a process of its own because it loads torch. Raises ApiError."""
    if entry.path.exists():
        return
    if not entry.is_converted:
        raise ApiError(503, f"the file of {entry.id} is gone: {entry.path.name}", "model_broken", "model")
    command = module_command("settle.library.convert", entry.id.removeprefix("store:"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_SECONDS)
    if done.returncode or not entry.path.exists():
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ApiError(503, f"{entry.id} cannot be converted to GGUF: {reason[0][:300]}", "model_broken", "model")
