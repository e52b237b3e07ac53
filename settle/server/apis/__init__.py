"""The wire formats that the server speaks, one folder or file each: routes, bodies and errors of one API."""

from typing import ClassVar

from settle.base.registry import Part
from settle.server.gateway import Endpoint, Handler
from settle.wire.errors import ApiError, ErrorBody, openai_error


class Api(Part):
    """The contract of an API. is_fallback: whether it answers for the paths that no other API owns."""

    is_fallback: ClassVar[bool] = False

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        """Return method, path and endpoint of every route."""
        raise NotImplementedError

    def error(self, error: ApiError) -> ErrorBody:
        """Return the body of an error: OpenAI's, unless an API has its own."""
        return openai_error(error)

    def owns(self, path: str) -> bool:
        """Whether errors of a path that is unknown, or not allowed, are formatted as this API does."""
        return self.is_fallback

    def endpoint(self, handler: Handler) -> Endpoint:
        name = getattr(handler, "__name__", "")
        return Endpoint(handler, f"{type(self).__name__.lower()}.{name}", self.error)
