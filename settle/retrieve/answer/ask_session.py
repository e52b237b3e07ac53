"""`settle ask`: questions to one collection, answered as events, one or in turn on a terminal."""

import sys
from pathlib import Path
from textwrap import indent
from typing import Self

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady, Say, Warn
from settle.base.python_command import shell_line
from settle.base.visible import visible_line
from settle.retrieve.answer.answer import CitedAnswer, hanging
from settle.retrieve.answer.answering_model import AnsweringModel
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.evidence import Retrieval, is_outdated, retrieve
from settle.retrieve.answer.groundedness import uncalibrated
from settle.retrieve.answer.write_answer import AnswerOptions
from settle.retrieve.index.collection import Collection, collection_names

HELP = "/bye or Ctrl-D leaves; Ctrl-C stops an answer. A question may refer to the one before."


def ask(
    name: str, question: str | None, events: Events, model: str | None, k: int, passages: bool, max_tokens: int
) -> int:
    """Answer `question`, or text on stdin, or converse on the terminal; return the exit code.

    A name of several words is a question to the one collection there is. passages: only show what is found.
    max_tokens: of an answer. Raises SettleError.
    """
    names = collection_names()
    if question is None and len(name.split()) > 1 and name not in names:
        if not names:
            raise UsageError("there is no collection to ask yet", "`settle index FOLDER` makes one")
        if len(names) > 1:
            what = f"which collection do you mean? There are: {', '.join(names)}"
            raise UsageError(what, f"`{shell_line('settle', 'ask', names[0], name)}`")
        name, question = names[0], name
    with AskSession(Collection(name), events, model, k, passages, max_tokens) as session:
        if question == "-" or (question is None and not sys.stdin.isatty()):
            question = sys.stdin.read()
        if question is not None:
            return session.once(question.strip())
        session.converse()
    return 0


class AskSession:
    """One collection, and the model that answers: it is loaded while the first question is searched for."""

    def __init__(
        self, collection: Collection, events: Events, model: str | None, k: int, passages: bool, max_tokens: int
    ) -> None:
        self._collection, self._events, self._k = collection, events, k
        self._options = AnswerOptions(tokens=max_tokens)
        self._earlier: list[str] = []
        self._model: AnsweringModel | None = None
        try:
            if not collection.catalogue.counts()["passages"]:
                fix = f"wait until `settle index {collection.name}` has ended, or start it"
                raise UsageError(f"{collection.name} holds no text yet", fix)
            if is_outdated(collection.catalogue):
                fix = f"settle index {collection.name} --check"
                events.emit(Say(text=f"refusals are no longer fitted to these documents: `{fix}`"))
            if name := uncalibrated(collection.catalogue):
                events.emit(Say(text=f"{name} is not used yet: `settle index {collection.name} --check` calibrates it"))
            if not passages:
                self._model = AnsweringModel(collection, model)
                if self._model.is_news:
                    events.emit(Say(text=self._model.why))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
        self._collection.close()

    @property
    def model_name(self) -> str | None:
        """The name of the model, None where passages are quoted."""
        return self._model.ref.name if self._model and self._model.ref else None

    def once(self, question: str) -> int:
        """Answer one question, and return the exit code."""
        if not question:
            raise UsageError("there is nothing to answer", f'settle ask {self._collection.name} "a question"')
        if self._model is None:
            return self._show_passages(question)
        answer = self._answer(question, self._model)
        about = {"collection": self._collection.name, "model": self.model_name}
        self._events.emit(ResultReady(result=about | answer.to_json()))
        return 0 if answer.kind != "refused" and answer.is_supported else 3

    def converse(self) -> None:
        """Answer questions on the terminal until the user leaves."""
        try:
            import readline  # noqa: F401  line editing and history for input()
        except ImportError:
            pass
        documents = f"{self._collection.name}: {self._collection.catalogue.counts()['documents']:,} documents"
        self._events.emit(Say(text=f"{documents}, answered by {self.model_name or 'quotes'}."))
        self._events.emit(Say(text=HELP))
        while True:
            line = None
            try:
                line = input("> ").strip()
                if line in ("/bye", "/exit", "/quit"):
                    return
                if line and self._model is None:
                    self._show_passages(line)
                elif line and self._model:
                    self._answer(line, self._model)
            except EOFError:
                self._events.emit(AnswerText(text="\n"))
                return
            except KeyboardInterrupt:
                self._events.emit(AnswerText(text="\n" if line is None else " …\n"))
                if line is None:
                    self._events.emit(Say(text="/bye or Ctrl-D leaves"))
            except UsageError as e:
                self._events.emit(Warn(text=str(e)))

    def _retrieve(self, question: str) -> Retrieval:
        retrieval = retrieve(self._collection, question, self._earlier, self._k)
        self._earlier.append(question)
        return retrieval

    def _answer(self, question: str, model: AnsweringModel) -> CitedAnswer:
        """Emit the answer piece by piece, and then its sources."""
        retrieval = self._retrieve(question)
        engine = model.engine() if retrieval.evidence.is_sure else None
        pieces = stream_answer(self._collection, engine, retrieval, self._options)
        answer = finish_answer(pieces, lambda text: self._events.emit(AnswerText(text=_hanging(text))))
        lines: list[str] = []
        for source, piece in answer.cited:
            title = f"  {source.title}" if source.pieces[0].passage.headings else ""
            lines.append(f"[{source.number}] {_relative(piece.place)}{title}")
            if model.is_small:
                lines += [f"    “{visible_line(quote)}”" for quote in answer.quotes(source)]
        self._events.emit(AnswerText(text="\n".join(["", *([""] if lines else []), *lines, ""])))
        for warning in answer.warnings:
            self._events.emit(Warn(text=warning))
        return answer

    def _show_passages(self, question: str) -> int:
        """Emit the passages for a question, and return the exit code."""
        retrieval = self._retrieve(question)
        passages = []
        for number, hit in enumerate(retrieval.hits, 1):
            headings = visible_line(" › ".join(hit.passage.headings))
            head = f"[{number}] {_relative(hit.citation)}" + (f"  {headings}" if headings else "")
            text = indent(hit.passage.text, "  ")  # no line of a passage can be taken for a citation
            self._events.emit(AnswerText(text=f"{head}\n{text}\n\n"))
            record = {"number": number, "place": hit.citation, "passage": hit.passage.id}
            record |= {"headings": list(hit.passage.headings), "text": hit.passage.text}
            passages.append(record | {"score": hit.score, "similarity": hit.similarity})
        result = {"collection": self._collection.name, "question": question, "passages": passages}
        self._events.emit(ResultReady(result=result | {"evidence": round(retrieval.evidence.score, 4)}))
        return 0 if passages else 3


def _relative(place: str) -> str:
    """Return a place as it can be opened from the current folder."""
    return place.removeprefix(f"{visible_line(str(Path.cwd()))}/")


def _hanging(piece: str) -> str:
    """Return a piece of an answer with its inner lines indented; the line feeds around it separate it from others."""
    inside = piece.strip("\n")
    return piece.replace(inside, hanging(inside), 1) if inside else piece
