"""Conversations that are kept on this machine for its user alone: SETTLE_HOME/chats, a file each.

A message follows another one, and several may follow the same: what is asked or answered again is another version. An
answer that was corrected is also a preference row of SETTLE_HOME/chats/corrections.jsonl, which `settle tune` reads.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from settle.base.errors import ResourceError, UsageError, cannot_write
from settle.base.files import append_lines, home, write_atomic
from settle.infer.chat_session import ChatSession

LOCK_SECONDS = 10.0
SAVE_SECONDS = 2.0  # between two copies on the disk of an answer that is being written
LONGEST_TITLE = 60  # characters
ID = re.compile(r"[0-9a-f]{12}")
USER = "you"  # who wrote an answer that was corrected


class Message(BaseModel):
    """One message of a conversation.

    after: the index of the message that it follows. by: the model that wrote it, or USER. is_cut: the model did not end
    it itself.
    """

    role: Literal["user", "assistant"]
    content: str
    after: int | None = None
    by: str = ""
    is_cut: bool = False


@dataclass
class Exchange:
    """A question that follows the message `after`, and its answer: their indices, None for what is not kept yet."""

    text: str
    after: int | None
    question: int | None = None
    answer: int | None = None

    def __post_init__(self) -> None:
        self.text = _encodable(self.text)


class Conversation(BaseModel):
    """All versions of its messages, in the order in which they were written.

    last: the index of the last message that is shown. model: the name of the one that answered last. Every change is
    written at once, on top of what another tab has written meanwhile; it raises ResourceError, and UsageError where the
    conversation was deleted.
    """

    id: str = Field(default_factory=lambda: secrets.token_hex(6))
    title: str = ""
    model: str = ""
    messages: list[Message] = []
    last: int | None = None
    _is_new: bool = PrivateAttr(True)

    @classmethod
    def read(cls, id: str) -> "Conversation":
        """Read one. Raises UsageError where there is none of this id."""
        try:
            if ID.fullmatch(id):
                found = cls.model_validate_json(_path(id).read_bytes())
                found.id, found._is_new = id, False
                return found
        except (OSError, ValidationError):
            pass
        raise UsageError("this conversation was deleted, or is damaged", "begin a new chat, or choose another one")

    @model_validator(mode="after")
    def _require_order(self) -> "Conversation":
        """Refuse what another program has written wrongly: each message follows one of the other role before it."""
        for index, message in enumerate(self.messages):
            after = message.after
            is_ordered = message.role == "user" if after is None else 0 <= after < index
            if not is_ordered or (after is not None and self.messages[after].role == message.role):
                raise ValueError(f"message {index} follows none that it may follow")
        if self.last is not None and not 0 <= self.last < len(self.messages):
            raise ValueError("the last message is not there")
        return self

    @property
    def exchanges(self) -> list[Exchange]:
        """The questions and answers up to `last`."""
        indices = self._path_to(self.last)
        return [
            Exchange(self.messages[question].content, self.messages[question].after, question, answer)
            for question, answer in zip(indices[::2], indices[1::2], strict=False)
        ]

    def versions(self, index: int) -> list[int]:
        """Return the indices of all messages that follow the same one."""
        return [n for n, message in enumerate(self.messages) if message.after == self.messages[index].after]

    def show(self, index: int) -> None:
        """Show this message, and what was written last after it."""
        with self._latest():
            self.last = index
            while following := [n for n, message in enumerate(self.messages) if message.after == self.last]:
                self.last = following[-1]

    def reply(
        self, exchange: Exchange, by: str, begin: Callable[[list[dict[str, str]]], ChatSession]
    ) -> Generator[str, None, None]:
        """Yield the pieces of an answer, which is kept with its question as it grows, however it ends.

        exchange: what is answered, and the answer that is continued, if it has one; it gets the indices of both once
        they are kept. by: the name of the model. begin: makes its session, from what was said before. An answer that
        fails before its first piece leaves nothing.
        """
        answer = Message(role="assistant", content="", by=by, is_cut=True)
        if exchange.answer is not None:
            answer = self.messages[exchange.answer].model_copy()
            yield answer.content
        self.model, due, has_ended = by, 0.0, False
        with contextlib.closing(begin(self._turns(exchange.after)).answer(exchange.text, answer.content)) as pieces:
            try:
                while True:
                    piece = next(pieces)
                    answer.content += piece
                    if time.monotonic() >= due:
                        with contextlib.suppress(ResourceError):  # the disk may have room again at the end
                            self._keep(exchange, answer)
                        due = time.monotonic() + SAVE_SECONDS
                    yield piece
            except StopIteration as end:
                answer.is_cut, has_ended = end.value, True
            finally:
                if has_ended or answer.content:
                    self._keep(exchange, answer)

    def correct(self, index: int, text: str, system: str | None = None) -> Path:
        """Add what an answer should have been as another version of it, and as a row; return the file of rows."""
        text = _encodable(text)
        old, file = self.messages[index], _folder() / "corrections.jsonl"
        before = [*([{"role": "system", "content": system}] if system else []), *self._turns(old.after)]
        chosen, rejected = ([{"role": "assistant", "content": content}] for content in (text, old.content))
        with self._latest():
            self._append(Message(role="assistant", content=text, after=old.after, by=USER))
            row = {"prompt": before, "chosen": chosen, "rejected": rejected, "model": old.by, "time": time.time()}
            append_lines(file, [row], sync=True)
            file.chmod(0o600)
        return file

    def delete(self) -> None:
        """Delete it; what is written for it afterwards is refused."""
        _path(self.id).unlink(missing_ok=True)

    def _keep(self, exchange: Exchange, answer: Message) -> None:
        question, index = exchange.question, exchange.answer
        with self._latest():
            if question is None:
                question = self._append(Message(role="user", content=exchange.text, after=exchange.after))
            answer.after = question
            if index is None:
                index = self._append(answer)
            self.messages[index], self.last = answer.model_copy(), index
            self.title = self.title or " ".join(exchange.text.split())[:LONGEST_TITLE]
        exchange.question, exchange.answer = question, index

    def _append(self, message: Message) -> int:
        self.messages.append(message)
        self.last = len(self.messages) - 1
        return self.last

    def _path_to(self, last: int | None) -> list[int]:
        """Return the indices of the messages up to `last`, the first one first."""
        indices = list[int]()
        while last is not None:
            indices.append(last)
            last = self.messages[last].after
        return indices[::-1]

    def _turns(self, last: int | None) -> list[dict[str, str]]:
        """Return the messages up to `last`, as a model reads them."""
        return [{"role": self.messages[n].role, "content": self.messages[n].content} for n in self._path_to(last)]

    @contextlib.contextmanager
    def _latest(self) -> Iterator[None]:
        """Bring the messages up to date, and write what is changed; where that fails nothing is changed."""
        before, last, path = [*self.messages], self.last, _path(self.id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock", LOCK_SECONDS):
                if not self._is_new:
                    latest = self.read(self.id)
                    self.messages, self.title = latest.messages, latest.title
                yield
                write_atomic(path, self.model_dump_json(indent=1))
                path.chmod(0o600)
                self._is_new = False
                before, last = self.messages, self.last
        except OSError as e:  # a lock that is held for too long, too
            raise cannot_write(path, e) from None
        finally:
            self.messages, self.last = before, last


@dataclass(frozen=True)
class Heading:
    """A conversation in a list. time: of its last change, in seconds since the epoch."""

    id: str
    title: str
    time: float


def conversations(words: str = "") -> Sequence[Heading]:
    """Return those that hold all of these words, the one that was changed last first; damaged files are left out."""
    wanted, found = words.lower().split(), list[Heading]()
    for path in _folder().glob("*.json"):
        with contextlib.suppress(UsageError, OSError):
            one = Conversation.read(path.stem)
            texts = "\n".join([one.title, *(message.content for message in one.messages)]).lower()
            if all(word in texts for word in wanted):
                found.append(Heading(one.id, one.title, path.stat().st_mtime))
    return sorted(found, key=lambda heading: -heading.time)


def _encodable(text: str) -> str:
    """Replace halves of characters, which a browser may send."""
    return text.encode("utf-8", "replace").decode()


def _folder() -> Path:
    return home() / "chats"


def _path(id: str) -> Path:
    return _folder() / f"{id}.json"
