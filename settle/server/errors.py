"""A request that is not done, and why. Every shape says it in its own words (see `Shape.error`)."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from settle.server.models.model_catalogue import Entry

OPENAI_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """status: of HTTP. code: machine-readable, OpenAI's where it has one. param: the field at fault.
    extra: more fields of the error, such as counts. retry_seconds: when to come back."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        extra: dict[str, Any] | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.extra, self.retry_seconds = extra or {}, retry_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_seconds)} if self.retry_seconds else {}


def unsupported(param: str, why: str) -> Refusal:
    """A field that cannot be done here; it is never ignored."""
    return Refusal(400, f"{param}: {why}", "unsupported_parameter", param)


def invalid(param: str | None, why: str) -> Refusal:
    """A value that makes no sense."""
    return Refusal(400, f"{param}: {why}" if param else why, "invalid_value", param)


def require_no_documents(entry: "Entry", why: str) -> None:
    """Raises Refusal for a collection of documents, which only chats."""
    if entry.collection:
        said = f"{entry.id} answers questions in chats, from documents: {why}"
        raise Refusal(400, said, "wrong_model", "model")


def only(value: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    """Raises Refusal for keys that are not known: what is not named is refused, not ignored."""
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise invalid(where, f"unrecognized: {', '.join(unknown)[:200]}")


def in_words_of_openai(refusal: Refusal) -> dict[str, Any]:
    """The body of an error as every API of OpenAI has it."""
    kind = OPENAI_KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    said = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return {"error": said | refusal.extra}
