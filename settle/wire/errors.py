"""A request that fails, and why. Every API formats it in its own way (see `Api.error`)."""

from collections.abc import Collection, Iterable, Mapping

# the param of an error in the prompt, until the endpoint knows which of its fields the prompt came from
PROMPT = "<prompt>"
ErrorBody = Mapping[str, object]  # as JSON
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that fails.

    status: of HTTP. code: machine-readable, OpenAI's where it has one. param: the field at fault. extra: further
    fields of the error, such as counts. retry_seconds: when to try again."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        extra: ErrorBody | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.extra, self.retry_seconds = dict(extra or {}), retry_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_seconds)} if self.retry_seconds else {}


def unsupported(param: str, why: str) -> ApiError:
    """Return the error of a field that this server does not support; such a field is never ignored."""
    return ApiError(400, f"{param}: {why}", "unsupported_parameter", param)


def invalid(param: str | None, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}" if param else why, "invalid_value", param)


def reject_unknown(value: Iterable[str], known: Collection[str], where: str) -> None:
    """Reject unknown keys, which are never ignored. Raises ApiError."""
    unknown = sorted(key for key in value if key not in known)
    if unknown:
        raise invalid(where, f"unrecognized: {', '.join(unknown)[:200]}")


def openai_error(error: ApiError) -> ErrorBody:
    """Return the body of an error as all APIs of OpenAI format it."""
    kind = OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": fields | error.extra}
