"""A message on a page: its text as elements, and what can be done with it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from nicegui.element import Element

from settle.base.visible import visible, visible_line
from settle.documents.markdown_tree import markdown_tree
from settle.studio.visit import reported


class MessageView(Element, component="message.js"):
    """One message. mine: the user's own, which is shown as it is; on_act: called with an act and a text."""

    def __init__(self, head: str, text: str, mine: bool, on_act: Callable[[str, str], Awaitable[None]]) -> None:
        super().__init__()
        self.props.update({"head": visible_line(head), "mine": mine, "acts": [], "edit": [], "versions": [], "at": 0})
        self.text: str | None = None
        self.show(text)
        acted = reported(on_act)  # the framework passes no event to a function of *args
        self.on("act", lambda event: acted(*map(str, event.args)))

    def show(self, text: str, if_empty: str = "") -> None:
        """Replace its text; nothing is sent where it is the same."""
        if (text or if_empty) != self.text:
            self.text = text or if_empty
            nodes = markdown_tree(text.lstrip("\n")) if not self.props["mine"] else [visible(text)]
            self.props["nodes"] = nodes if text else [["p", {}, [if_empty]]]

    def offer(
        self, text: str, acts: Mapping[str, str], edit: tuple[str, ...], at: int, versions: Sequence[int]
    ) -> None:
        """Offer acts, by name, with their labels, and "show", with the index of another version.

        text: to copy or edit. edit: the name and label of the act that changes it, and labels of its text and its end.
        """
        self.props.update({"text": text, "acts": [*acts.items()], "edit": edit, "at": at, "versions": versions})
