"""One file is one page of the studio: its class says where it is found, and `build` fills it."""

from typing import ClassVar

from settle.base.registry import Part
from settle.studio.visit import Visit


class Page(Part):
    """The contract of a page: `path` as the browser asks for it, with {names} of what varies; `title`, its heading.

    place: the order among the links of the navigation; None for a page that other pages lead to. is_door: it is one of
    the four in the header, the others are behind *More*. within: the path of the page that one without a place belongs
    to.
    """

    path: ClassVar[str]
    title: ClassVar[str]
    place: ClassVar[int | None] = None
    is_door: ClassVar[bool] = False
    within: ClassVar[str] = ""

    async def build(self, visit: Visit) -> None:
        """Add the page's elements. Raises SettleError, which is shown in their place."""
        raise NotImplementedError
