"""Documents: questions to a collection, every sentence with its citation or a refusal; and how each stands."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nicegui import ui

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Event, ResultReady, Warn
from settle.base.words.amounts import amount
from settle.retrieve.index.collection_folder import collection_names
from settle.retrieve.index.list_collections import MOST_SHOWN, list_status
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import button, card, words
from settle.studio.pages import Page
from settle.studio.passage import passage_link
from settle.studio.table import Table
from settle.studio.visit import Visit, in_thread, reported

COLUMNS = ("name", "documents", "passages", "size", "not read", "changed since", "indexed", "embedder", "follows")
TITLES = {"refused": "The documents do not answer this", "quoted": "Quoted from the documents", "written": "Answer"}


class Documents(Page):
    """Ask a collection."""

    path: ClassVar[str] = "/documents"
    title: ClassVar[str] = "Documents"
    place: ClassVar[int | None] = 60

    async def build(self, visit: Visit) -> None:
        names = collection_names()
        if not names:
            with card("No collections yet"):
                words("A collection is made from folders of documents.", classes="dim")
                ui.link("Index a folder", "/new?command=index")
            return
        child = CommandChild()
        with card("Ask"):
            collection = Field("Collection", "choice", value=names[0], options=[(name, name) for name in names])
            question = Field("Question")
            model = Field("Model that answers", help="the collection's own where it is left empty; none: only quote")

            async def ask() -> None:
                if not str(question.value).strip():
                    raise UsageError("there is nothing to answer", "write a question")
                line = ["ask", str(collection.value), str(question.value).strip()]
                line += ["--model", str(model.value).strip()] if str(model.value).strip() else []
                place.clear()
                with place:
                    waiting = words("searching …", classes="dim")
                try:
                    answer = await child.read(line)
                finally:
                    waiting.delete()
                with place:
                    show_answer(answer)

            question.on("enter", reported(ask))
            button("Ask", ask, main=True)
        place = ui.element("div").props('aria-live="polite"')
        with card("Status"):
            status = _Status()

            async def update() -> None:
                progress.text = "reading what changed …"
                line = ["index", str(collection.value)]
                result = await child.read(line, lambda lines: setattr(progress, "text", lines[-1]))
                progress.text = f"{result['name']}: {result['documents']:,} documents, {result['passages']:,} passages."
                await status.show()

            await status.show()
            with ui.element("div").classes("row"):
                button("Bring the chosen one up to date", update)
                ui.link("Index a folder", "/new?command=index")
                progress = words("", classes="dim").props('role="status"')


class _Status:
    """How the collections stand: what of their documents could not be read, and what changed since."""

    def __init__(self) -> None:
        self._table = Table("Collections", COLUMNS, COLUMNS[1:6])
        self._faults = ui.element("div")

    async def show(self) -> None:
        seen: list[Event] = []
        await in_thread(list_status, [], Events(listeners=[seen.append]))
        found: Any = next(event.result["collections"] for event in seen if isinstance(event, ResultReady))
        self._table.show([
            [c["name"], f"{c['documents']:,}", f"{c['passages']:,}", amount(c["bytes"], "bytes"),
             {"text": f"{len(c['failed']):,}", "tone": "warn" if c["failed"] else ""}, _changes(c),
             f"{amount(c['age'], 's')} ago" if c["age"] is not None else "never", c["embedder"], ", ".join(c["roots"])]
            for c in found
        ])  # fmt: skip
        self._faults.clear()
        with self._faults:
            for event in seen:
                if isinstance(event, Warn):
                    words(event.text, classes="warn")
            _show_faults([fault for c in found for fault in (*c["unseen"], *c["failed"])])


def _changes(c: Mapping[str, Any]) -> dict[str, str]:
    text = ", ".join(f"{c[what]:,} {what}" for what in ("new", "changed", "gone") if c[what])
    return {"text": text or "nothing", "tone": "warn" if text else "good"}


def _show_faults(faults: Sequence[Mapping[str, str]]) -> None:
    if faults:
        with ui.element("details"):
            words(f"Could not be read ({len(faults):,})", "summary")
            Table("Could not be read", ("file", "why")).show([[f["path"], f["why"]] for f in faults[:MOST_SHOWN]])


def show_answer(answer: Mapping[str, Any]) -> None:
    """An answer as `settle ask --json` returns it: sentences with citation and verdict, passages with their places."""
    name, evidence = str(answer["collection"]), answer["evidence"]
    with card(TITLES.get(str(answer["kind"]), "Answer")):
        if answer["refused"]:
            words(str(answer["answer"]))
            chance, least = f"{evidence['score']:.0%}", f"{evidence['threshold']:.0%}"
            words(
                f"The probability that the documents hold an answer is {chance} (assuming that half of all questions "
                f"have one); below {least} nothing is answered.",
                classes="dim",
            )
            words(f"settle index {name} --check sets this limit for your documents.", classes="dim")
        elif answer["perhaps"]:
            words(f"The documents may not answer this (probability {evidence['score']:.0%}, sure from "
                  f"{evidence['sure']:.0%}); this comes nearest.", classes="warn")  # fmt: skip
        for sentence in answer["sentences"]:
            _show_sentence(sentence, name)
        if not answer["refused"]:
            by = f"{answer['model']} wrote it; every sentence was checked against the passage that it cites."
            words(by if answer["kind"] == "written" else "No model wrote any of it.", classes="dim")
        if answer["dropped"]:
            words(f"{answer['dropped']} of the passages found did not fit beside the question.", classes="warn")
    with card("Nearest passages" if answer["refused"] else "Passages"):
        for source in answer["sources"]:
            with ui.element("details"):
                words(f"[{source['number']}] {source['title']}", "summary")
                for where, passage in zip(source["places"], source["passages"], strict=True):
                    ui.link(str(where), passage_link(name, passage), new_tab=True)
                words(str(source["text"]), "pre", "tall").props("tabindex=0")


def _show_sentence(sentence: Mapping[str, Any], name: str) -> None:
    differs = ", ".join(map(str, sentence["differs"]))
    with ui.element("p").classes("sentence"):
        words(str(sentence["text"]), "span")
        if sentence["supported"]:
            link = ui.link(f"[{sentence['number']}]", passage_link(name, sentence["passage"]), new_tab=True)
            link.props["aria-label"] = f"[{sentence['number']}], {sentence['place']}"
            words(f"supported, {sentence['support']:.0%}", "small", "good")
        else:
            words("not in the documents" + (f": {differs}" if differs else ""), "small", "bad")
    if sentence["quote"]:
        words(f"The passage says: “{sentence['quote']}”", classes="dim quote")
