"""Wire formats, one file each: the routes of one API, and how it tells of errors."""

from typing import Any, ClassVar

from settle.base.registry import Part
from settle.server.errors import Refusal
from settle.server.gateway import Endpoint, Handler
from settle.server.requests.fields import Body


class Shape(Part):
    """The contract of a wire format. is_fallback: whether it has the paths that no other shape claims."""

    is_fallback: ClassVar[bool] = False

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        """Method, path, and what answers it."""
        raise NotImplementedError

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """The body of a response that refuses."""
        raise NotImplementedError

    def owns(self, path: str) -> bool:
        """Whether a path that is unknown, or not let in, is refused in this shape's words."""
        return self.is_fallback

    def endpoint(self, handler: Handler, takes: type[Body] | None = None) -> Endpoint:
        return Endpoint(handler, f"{type(self).__name__.lower()}.{handler.__name__}", self.error, takes)
