"""Conversations that are kept on this machine for its user alone: SETTLE_HOME/chats, a file each.

A message follows another one, and several may follow the same: what is asked or answered again is another version. An
answer that was corrected is also a preference row of SETTLE_HOME/chats/corrections.jsonl, which `settle tune` reads.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from settle.base.errors import ResourceError, UsageError, cannot_write
from settle.base.files import append_lines, home, write_atomic

LOCK_SECONDS = 10.0
SAVE_SECONDS = 2.0  # between two copies on the disk of an answer that is being written
LONGEST_TITLE = 60  # characters
ID = re.compile(r"[0-9a-f]{12}")
USER = "you"  # who wrote an answer that was corrected


class Message(BaseModel):
    """One message of a conversation.

    after: the index of the message that it follows. by: the model that wrote it, or USER. is_cut: the model did not end
    it itself. cited: of an answer from documents, the record of `settle ask`.
    """

    role: Literal["user", "assistant"]
    content: str
    after: int | None = None
    by: str = ""
    is_cut: bool = False
    cited: dict[str, Any] | None = None


class Conversation(BaseModel):
    """All versions of its messages, in the order in which they were written.

    last: the index of the last message that is shown. model: the name of the one that answered last. files: documents
    that it is answered from, indexed as `collection`. Every change is written at once, on top of what another tab has
    written meanwhile; it raises ResourceError, and UsageError where the conversation was deleted.
    """

    id: str = Field(default_factory=lambda: secrets.token_hex(6))
    title: str = ""
    model: str = ""
    messages: list[Message] = []
    last: int | None = None
    files: list[str] = []
    _is_new: bool = PrivateAttr(True)

    @classmethod
    def read(cls, id: str) -> "Conversation":
        """Read one. Raises UsageError where there is none of this id."""
        try:
            if ID.fullmatch(id):
                found = cls.model_validate_json(_path(id).read_bytes())
                found._is_new = False
                return found
        except (OSError, ValidationError):
            pass
        raise UsageError("this conversation was deleted, or is damaged", "begin a new chat, or choose another one")

    @property
    def collection(self) -> str:
        return f"chat-{self.id}"

    def path(self, last: int | None) -> list[int]:
        """Return the indices of the messages up to `last`, the first one first."""
        indices = list[int]()
        while last is not None:
            indices.insert(0, last)
            last = self.messages[last].after
        return indices

    def turns(self, last: int | None) -> list[dict[str, str]]:
        """Return the messages up to `last`, as a model reads them."""
        return [{"role": self.messages[n].role, "content": self.messages[n].content} for n in self.path(last)]

    def versions(self, index: int) -> list[int]:
        """Return the indices of all messages that follow the same one."""
        return [n for n, message in enumerate(self.messages) if message.after == self.messages[index].after]

    def show(self, index: int) -> None:
        """Show this message, and what was written last after it."""
        with self._latest():
            self.last = index
            while following := [n for n, message in enumerate(self.messages) if message.after == self.last]:
                self.last = following[-1]

    def add(self, *messages: Message) -> int:
        """Add messages, of which each follows the one before it, and return the index of the last one."""
        with self._latest():
            for number, message in enumerate(messages):
                message.after = self.last if number else message.after
                self.messages.append(message)
                self.last = len(self.messages) - 1
            self.title = self.title or _title(messages[0].content)
        assert self.last is not None
        return self.last

    def add_file(self, path: str) -> None:
        """Add a document; a conversation without a message is called like it."""
        with self._latest():
            self.files.append(path)
            self.title = self.title or _title(Path(path).name)

    def record(self, pieces: Generator[str, None, None], *new: Message) -> Generator[str, None, None]:
        """Yield the pieces of an answer, which is kept as it grows, however it ends.

        new: messages that are added with the first piece: a question, and the answer. Without them the last message is
        continued. An answer that fails before its first piece leaves nothing.
        """
        index, due, has_ended = self.last if not new else None, 0.0, False
        assert new or index is not None
        answer = new[-1] if new else self.messages[index or 0]

        def keep() -> int:
            if index is None:
                return self.add(*new)
            with self._latest():
                self.messages[index] = answer
            return index

        with contextlib.closing(pieces):
            try:
                for piece in pieces:
                    answer.content += piece
                    if time.monotonic() >= due:
                        with contextlib.suppress(ResourceError):  # the disk may have room again at the end
                            index = keep()
                        due = time.monotonic() + SAVE_SECONDS
                    yield piece
                has_ended = True
            finally:
                if has_ended or answer.content:
                    keep()

    def correct(self, index: int, text: str, system: str | None = None) -> Path:
        """Add what an answer should have been as another version of it, and as a row; return the file of rows."""
        old = self.messages[index]
        ends = [[{"role": "assistant", "content": content}] for content in (text, old.content)]
        before = [*([{"role": "system", "content": system}] if system else []), *self.turns(old.after)]
        self.add(Message(role="assistant", content=text, after=old.after, by=USER))
        file = _folder() / "corrections.jsonl"
        row = {"prompt": before, "chosen": ends[0], "rejected": ends[1], "model": old.by, "time": time.time()}
        with FileLock(_folder() / ".lock", LOCK_SECONDS):
            append_lines(file, [row], sync=True)
            file.chmod(0o600)
        return file

    def delete(self) -> None:
        """Delete it, and its documents where they were dropped on the page."""
        for file in map(Path, self.files):
            if file.parent == home() / "uploads":
                file.unlink(missing_ok=True)
        _path(self.id).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _latest(self) -> Iterator[None]:
        """Bring the messages up to date, and write what is changed; where that fails nothing is changed."""
        before, last, path = [*self.messages], self.last, _path(self.id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock", LOCK_SECONDS):
                if not self._is_new:
                    latest = self.read(self.id)
                    self.messages, self.title, self.files = latest.messages, latest.title, latest.files
                yield
                write_atomic(path, self.model_dump_json(indent=1))
                path.chmod(0o600)
                self._is_new = False
        except OSError as e:  # a lock that is held for too long, too
            self.messages, self.last = before, last
            raise cannot_write(path, e) from None


@dataclass(frozen=True)
class Heading:
    """A conversation in a list. time: of its last change, in seconds since the epoch."""

    id: str
    title: str
    time: float


def conversations(words: str = "") -> Sequence[Heading]:
    """Return those that hold all of these words, the one that was changed last first."""
    wanted, found = words.lower().split(), list[Heading]()
    for path in _folder().glob("*.json"):
        with contextlib.suppress(UsageError, OSError):
            one = Conversation.read(path.stem)
            texts = "\n".join([one.title, *(message.content for message in one.messages)]).lower()
            if all(word in texts for word in wanted):
                found.append(Heading(one.id, one.title, path.stat().st_mtime))
    return sorted(found, key=lambda heading: -heading.time)


def _title(text: str) -> str:
    return " ".join(text.split())[:LONGEST_TITLE]


def _folder() -> Path:
    return home() / "chats"


def _path(id: str) -> Path:
    return _folder() / f"{id}.json"
