"""Documents: questions to a collection, every sentence with its citation or a refusal; and how each stands."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from nicegui import ui

from settle.base.words.amounts import amount
from settle.library.deletion import folder_size
from settle.retrieve.index.collection import CollectionFolder, collection_names, indexed_names
from settle.retrieve.index.list_collections import list_status
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import Slot, button, card, confirmed, empty_state, words
from settle.studio.pages import Page
from settle.studio.passage import passage_link
from settle.studio.table import show_listed
from settle.studio.visit import Visit, in_thread, reported

INDEX = "/new?command=index"
TITLES = {"refused": "The documents do not answer this", "quoted": "Quoted from the documents", "written": "Answer"}


class Documents(Page):
    """Ask a collection."""

    path = "/documents"
    title = "Documents"
    place = 30
    is_door = True

    async def build(self, visit: Visit) -> None:
        names = indexed_names()
        waiting = [name for name in collection_names() if name not in names]
        if waiting:
            words(f"{', '.join(waiting)}: no text yet. This page changes as soon as there is some.", classes="dim")
        if not names:
            empty_state("None to ask yet. A collection is made from folders of documents.", ("Index a folder", INDEX))

        async def look_again() -> None:
            if indexed_names() != names:
                ui.navigate.reload()

        if waiting or not names:
            visit.every_tick(look_again)
        if not names:
            return
        with card("Ask"):
            question = Field("Question")
            with ui.element("div").classes("columns"):
                collection = Field("Collection", "choice", options=names)
                model = Field("Model that answers", hint="the collection's own", help="none: only quote")

            async def ask() -> None:
                asked = question.required("there is nothing to answer", "write a question")
                place.clear()
                answer = await searching.read(["ask", *model.as_option("--model"), "--", collection.text, asked])
                with place:
                    show_answer(answer)

            question.on("enter", reported(ask))
            button("Ask", ask, main=True)
            searching = CommandChild()
        place = Slot()
        with card("Status"):
            status = Slot()

            async def update() -> None:
                result = await indexing.read(["index", "--", collection.text])
                await show_status()
                indexing.status.text = (
                    f"{result['name']}: {result['documents']:,} documents, {result['passages']:,} passages."
                )

            async def delete() -> None:
                await indexing.read(["index", "--delete", "--", collection.text])
                ui.navigate.reload()

            async def ask_to_delete() -> None:
                name = collection.text
                size = amount(await in_thread(folder_size, CollectionFolder(name).path), "bytes")
                question = f"Delete the index of {name}: {size}? The documents stay where they are."
                with asking.anew():
                    confirmed(question, f"Delete {name} for good", delete, asking.clear)

            show_status = partial(show_listed, status, "Collections", partial(list_status, []))
            await show_status()
            with ui.element("div").classes("row"):
                button("Bring the chosen one up to date", update)
                button("Delete the chosen one", ask_to_delete, classes="danger")
                ui.link("Index a folder", INDEX)
                indexing = CommandChild()
            asking = Slot()


def show_answer(answer: Mapping[str, Any]) -> None:
    """Show an answer of `settle ask --json`: sentences with citation and verdict, passages with their places."""
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
            cited = str(sentence["quote"] or sentence["text"])
            address = passage_link(name, sentence["passage"], sentence=cited)
            link = ui.link(f"[{sentence['number']}]", address, new_tab=True)
            link.props["aria-label"] = f"[{sentence['number']}], {sentence['place']}"
            if sentence["support"] < 1:  # a quoted one is supported by itself
                words(f"supported, {sentence['support']:.0%}", "small", "good")
        else:
            words("not in the documents" + (f": {differs}" if differs else ""), "small", "bad")
    if sentence["quote"]:
        words(f"The passage says: “{sentence['quote']}”", classes="dim quote")
