"""One file is one page of the studio: its class says where it is found, and `build` fills it."""

from typing import ClassVar

from settle.base.registry import Part
from settle.studio.visit import Visit


class Page(Part):
    """The contract of a page: `path` as the browser asks for it, with {names} of what varies; `title`, its heading.

    place: the order among the links of the navigation; None for a page that other pages lead to.
    """

    path: ClassVar[str]
    title: ClassVar[str]
    place: ClassVar[int | None] = None

    async def build(self, visit: Visit) -> None:
        """Add the page's elements. Raises SettleError, which is shown in their place."""
        raise NotImplementedError
