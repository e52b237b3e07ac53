"""Documents: the collections, and questions to one: every sentence with the place that says it, or the refusal."""

from collections.abc import Mapping
from typing import Any, ClassVar

from nicegui import ui

from settle.base.errors import UsageError
from settle.base.words.amounts import amount
from settle.retrieve.index.collection_folder import collection_names
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import button, card, words
from settle.studio.pages import Page
from settle.studio.table import Table
from settle.studio.visit import Visit

COLUMNS = ("name", "documents", "passages", "size", "embedder", "follows")


class Documents(Page):
    """Ask a collection."""

    path: ClassVar[str] = "/documents"
    title: ClassVar[str] = "Documents"
    place: ClassVar[int | None] = 60

    async def build(self, visit: Visit) -> None:
        names = collection_names()
        child = CommandChild()
        ui.context.client.on_delete(child.stop)
        if not names:
            with card("No collections yet"):
                words("A collection is made from folders of documents.", classes="dim")
                ui.link("Index a folder", "/new?command=index")
            return
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
                answer = await child.read(line)
                waiting.delete()
                with place:
                    show_answer(answer)

            button("Ask", ask, main=True)
        place = ui.element("div").props('aria-live="polite"')
        with card("Status"):
            table = Table("Collections", COLUMNS, ("documents", "passages", "size"))
        found = (await child.read(["index"]))["collections"]
        assert isinstance(found, list)
        table.show([
            [c["name"], f"{c['documents']:,}", f"{c['passages']:,}", amount(c["bytes"], "bytes"), c["embedder"],
             ", ".join(c["roots"])]
            for c in found
        ])  # fmt: skip


def show_answer(answer: Mapping[str, Any]) -> None:
    """An answer as `settle ask --json` returns it: sentences with citation and verdict, passages with their places."""
    evidence = answer["evidence"]
    kinds = {"refused": "The documents do not answer this", "quoted": "Quoted from the documents"}
    with card(kinds.get(str(answer["kind"]), "Answer")):
        if answer["refused"]:
            words(str(answer["answer"]))
            why = f"The evidence is {evidence['score']:.2f}; an answer needs {evidence['threshold']:.2f}."
            missing = ", ".join(evidence["missing"])
            words(why + (f" Not found: {missing}." if missing else ""), classes="dim")
        elif answer["perhaps"]:
            words("The documents may not answer this; this comes nearest.", classes="warn")
        for sentence in answer["sentences"]:
            number, is_supported = sentence["number"], sentence["supported"]
            with ui.element("p"):
                words(str(sentence["text"]), "span")
                if number is not None:
                    ui.link(f" [{number}]", f"#source{number}")
                differs = ", ".join(map(str, sentence["differs"]))
                verdict = "supported" if is_supported else "no passage supports this"
                words(
                    f" · {verdict}" + (f"; differs in {differs}" if differs else ""),
                    "span",
                    "good" if is_supported else "bad",
                )
    for source in answer["sources"]:
        with ui.element("details") as passage:
            passage.props["id"] = f"source{source['number']}"
            words(f"[{source['number']}] {', '.join(source['places'])}", "summary")
            words(str(source["text"]), "pre", "tall")
