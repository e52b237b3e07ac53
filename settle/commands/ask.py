"""settle ask: a question to indexed documents, answered with the places where it stands, or refused."""

import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady, Say, Warn
from settle.commands import Command

if TYPE_CHECKING:
    from settle.retrieve.answer.answering_model import Writer
    from settle.retrieve.answer.ask import Answer
    from settle.retrieve.answer.context import Source
    from settle.retrieve.index.collection import Collection

HELP = "/bye or Ctrl-D leaves; Ctrl-C stops an answer. A question may go on from the one before."


class Ask(Command):
    """Ask a collection of documents (see `settle index`). The answer cites the passages that it stands in; exit code 3
    when the documents do not answer. Without a QUESTION: one after the other on a terminal, or text on stdin.

    A sentence that no passage supports is marked. Without a language model the passages' best sentences are quoted.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "question")

    name: str = Field(description="a collection")
    question: str | None = Field(None, description="what to answer, then leave; - is stdin")
    model: str | None = Field(
        None,
        description="a run, a model of the store or a .gguf file, remembered for the collection; none: quote only",
    )
    k: int = Field(4, gt=0, le=50, description="passages that an answer is made from")
    passages: bool = Field(False, description="show the passages, and answer nothing")
    max_tokens: int = Field(256, gt=0, description="longest answer, in tokens")

    def run(self, events: Events) -> int:
        try:
            from settle.retrieve.index.collection import Collection
        except ModuleNotFoundError as e:
            raise UsageError(f"asking documents needs {e.name}", "pip install 'settle-lm[rag]'") from None
        with Collection(self.name) as collection, _Asking(self, collection, events) as asking:
            question = self.question
            if question == "-" or (question is None and not sys.stdin.isatty()):
                question = sys.stdin.read()
            if question is not None:
                return asking.once(question.strip())
            asking.converse()
        return 0


class _Asking:
    """One collection, and the model that answers: it is loaded while the first question is searched for."""

    def __init__(self, settings: Ask, collection: "Collection", events: Events) -> None:
        self.settings, self.collection, self.events = settings, collection, events
        self.earlier: list[str] = []
        self.writer: Writer | None = None

    def __enter__(self) -> "_Asking":
        from settle.retrieve.answer.answering_model import Writer
        from settle.retrieve.answer.evidence import is_outdated

        if is_outdated(self.collection.catalogue):
            fix = f"settle index {self.collection.name} --check"
            self.events.emit(Say(text=f"refusals are not fitted to these documents any more: `{fix}`"))
        if not self.settings.passages:
            self.writer = Writer(self.collection, self.settings.model)
            if self.writer.why:
                quoted = "" if self.writer.model else ". The passages' own sentences are quoted"
                self.events.emit(Say(text=self.writer.why + quoted))
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    @property
    def model(self) -> str | None:
        """Its name, None where passages are quoted."""
        return self.writer.model.name if self.writer and self.writer.model else None

    def once(self, question: str) -> int:
        """One question and its answer; the exit code."""
        if not question:
            raise UsageError("there is nothing to answer", f'settle ask {self.settings.name} "a question"')
        if self.settings.passages:
            return self._show_passages(question)
        answer = self._answer(question)
        about = {"collection": self.collection.name, "model": self.model}
        self.events.emit(ResultReady(result=about | answer.to_json()))
        return 0 if answer.kind != "refused" and answer.is_supported else 3

    def converse(self) -> None:
        try:
            import readline  # noqa: F401  line editing and history for input()
        except ImportError:
            pass
        counts = self.collection.catalogue.counts()
        told = f"{self.collection.name}: {counts['documents']:,} documents"
        self.events.emit(Say(text=f"{told}, answered by {self.model or 'quotes'}.\n{HELP}"))
        while True:
            line = None
            try:
                line = input("> ").strip()
                if line in ("/bye", "/exit", "/quit"):
                    return
                if line:
                    self._show_passages(line) if self.settings.passages else self._answer(line)
            except EOFError:
                self.events.emit(AnswerText(text="\n"))
                return
            except KeyboardInterrupt:
                self.events.emit(AnswerText(text="\n" if line is None else " …\n"))
                if line is None:
                    self.events.emit(Say(text="/bye or Ctrl-D leaves"))
            except UsageError as e:
                self.events.emit(Warn(text=str(e)))

    def _answer(self, question: str) -> "Answer":
        """Told as it comes, and then what it cites."""
        from settle.retrieve.answer.ask import answer, look, whole
        from settle.retrieve.answer.write_answer import Writing

        found = look(self.collection, question, self.earlier, self.settings.k)
        self.earlier.append(question)
        engine = self.writer.engine() if found.evidence.enough and self.writer else None
        pieces: Generator[str, None, Answer] = answer(
            self.collection, engine, found, Writing(tokens=self.settings.max_tokens)
        )
        told = whole(pieces, lambda text: self.events.emit(AnswerText(text=text)))
        lines = [f"[{source.number}] {_shown(piece.place)}{_title(source)}" for source, piece in told.cited]
        self.events.emit(AnswerText(text="\n".join(["", *([""] if lines else []), *lines, ""])))
        for warning in told.warnings:
            self.events.emit(Warn(text=warning))
        return told

    def _show_passages(self, question: str) -> int:
        from settle.retrieve.answer.ask import look

        found = look(self.collection, question, self.earlier, self.settings.k)
        self.earlier.append(question)
        told: list[dict[str, Any]] = []
        for number, hit in enumerate(found.hits, 1):
            headings = " › ".join(hit.passage.headings)
            head = f"[{number}] {_shown(hit.citation)}" + (f"  {headings}" if headings else "")
            self.events.emit(AnswerText(text=f"{head}\n{hit.passage.text}\n\n"))
            told.append(
                {
                    "number": number,
                    "place": hit.citation,
                    "passage": hit.passage.id,
                    "headings": list(hit.passage.headings),
                    "text": hit.passage.text,
                    "score": hit.score,
                    "similarity": hit.similarity,
                }
            )
        result = {"collection": self.collection.name, "question": question, "passages": told}
        self.events.emit(ResultReady(result=result | {"evidence": round(found.evidence.score, 4)}))
        return 0 if told else 3


def _shown(place: str) -> str:
    """A place as it can be opened from here."""
    here = f"{Path.cwd()}/"
    return place.removeprefix(here)


def _title(source: "Source") -> str:
    return f"  {source.title}" if source.pieces[0].passage.headings else ""
