"""A message on a page: its text as elements, and what can be done with it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from nicegui.element import Element

from settle.base.visible import visible, visible_line
from settle.documents.markdown_tree import markdown_tree
from settle.studio.visit import reported


class MessageView(Element, component="message.js"):
    """One message. mine: the user's own, which is shown as it is; on_act: called with "edit" and a text, or an act."""

    def __init__(self, head: str, text: str, mine: bool, on_act: Callable[[str, str], Awaitable[None]]) -> None:
        super().__init__()
        self.props.update({"head": visible_line(head), "mine": mine, "acts": [], "edits": [], "version": []})
        self.text: str | None = None
        self.show(text)
        acted = reported(on_act)  # the framework passes no event to a function of *args
        self.on("act", lambda event: acted(str(event.args), ""))
        self.on("edit", lambda event: acted("edit", str(event.args)))

    def show(self, text: str, if_empty: str = "") -> None:
        """Replace its text; nothing is sent where it is the same."""
        if (text or if_empty) != self.text:
            self.text = text or if_empty
            nodes = markdown_tree(text.lstrip("\n")) if not self.props["mine"] else [visible(text)]
            self.props["nodes"] = nodes if text else [["p", {}, [if_empty]]]

    def offer(
        self, text: str, acts: Mapping[str, str], edits: tuple[str, str], at: int, versions: Sequence[int]
    ) -> None:
        """Offer acts, by names, with their labels. text: to copy or edit; at: this one of the versions."""
        version = [versions.index(at) + 1, len(versions)] if len(versions) > 1 else []
        self.props.update({"text": text, "acts": [*acts.items()], "edits": edits, "version": version})
