"""A passage that an answer cites: its document, open at the line or the page."""

import re

from nicegui import ui

from settle.base.errors import UsageError
from settle.studio.layout import Facts, card, words
from settle.studio.pages import Page
from settle.studio.passage import Line, marked_parts, open_passage, page_link, passage_link
from settle.studio.visit import Visit, in_thread

NUMBER = re.compile(r"[0-9]{1,15}")


class Passage(Page):
    """The passage between the lines of its document."""

    path = "/passage/{collection}/{number}"
    title = "A passage of {collection}"
    within = "/documents"

    async def build(self, visit: Visit) -> None:
        collection, number, place = visit.path["collection"], visit.path["number"], visit.query.get("place", "0")
        if not (NUMBER.fullmatch(number) and NUMBER.fullmatch(place)):
            ui.context.client.status_code = 404
            raise UsageError("there is no such passage", "open one from an answer")
        opened = await in_thread(open_passage, collection, int(number), int(place))
        at = opened.at
        with card(at.place.after(at.path).rpartition("/")[2]):
            Facts([("document", at.path), ("under", " › ".join(opened.passage.headings))])
            if link := page_link(collection, opened.passage.id, at):
                ui.link(f"Open the document at page {at.place.page}", link, new_tab=True)
            if opened.note:
                words(opened.note, classes="warn")
            lines = opened.lines or [Line(0, text, True) for text in opened.passage.text.split("\n")]
            parts = iter(
                marked_parts([line.text for line in lines if line.is_of_passage], visit.query.get("sentence", ""))
            )
            with ui.element("pre").classes("lines").props("tabindex=0"):
                for line in lines:
                    with ui.element("div"):
                        words(f"{line.number:5} " if line.number else "", "span", "dim")
                        before, marked, after = next(parts) if line.is_of_passage else (line.text, "", "")
                        for text, tag in ((before, "span"), (marked, "mark"), (after, "span")):
                            if text:
                                words(text, tag)
        ui.run_javascript("document.querySelector('mark')?.scrollIntoView({block: 'center'})")
        if len(opened.occurrences) > 1:
            with card("It also is in"), ui.element("ul"):
                for other, occurrence in enumerate(opened.occurrences):
                    if occurrence != at:
                        with ui.element("li"):
                            where = occurrence.place.after(occurrence.path)
                            ui.link(where, passage_link(collection, opened.passage.id, other))
