"""Requests to a llama.cpp child, and what its errors mean."""

import json
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import aiohttp

from settle.infer.child_process import Body
from settle.server.models.loaded_model import LoadedModel
from settle.wire.errors import PROMPT, ApiError
from settle.wire.types import JsonObject

LONGEST_LINE = 1 << 26
MOST_ATTEMPTS = 3
CHAT_PATH, TEXT_PATH, COMPLETIONS_PATH = "/v1/chat/completions", "/completion", "/v1/completions"
# the text of an embedding must go through the model in one batch
TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large to process.*current batch size: (\d+)")
CONSTRAINTS = ("grammar", "tools")  # fields that make llama.cpp constrain an answer
REQUEST_FAULTS = ("template", "jinja", "grammar", "parse")  # in messages of errors that the request caused


async def open_stream(loaded: LoadedModel, path: str, body: Body) -> aiohttp.ClientResponse:
    """Return the response of a child; close it to stop the child. Raises ApiError."""
    # llama.cpp closes a connection after a stream, and one that was idle for long: a request that is sent on it at that
    # moment is lost before it is read, while the child is well
    headers = loaded.headers | ({"Connection": "close"} if body.get("stream") else {})
    data = json.dumps(body).encode()
    for attempt in range(MOST_ATTEMPTS):
        try:
            response = await loaded.session.post(loaded.url + path, data=data, headers=headers)
            break
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if attempt + 1 == MOST_ATTEMPTS or not loaded.child.alive():
                raise
    if response.status != 200:
        try:
            raise engine_error(response.status, await response.read())
        finally:
            response.release()
    return response


async def ask(loaded: LoadedModel, path: str, body: Body) -> Any:
    """Return a whole answer, parsed: of the type that the path has. Raises ApiError."""
    watch = GrammarWatch(loaded, body)
    async with await open_stream(loaded, path, body) as response:
        # errors="replace": a byte-level token can be half a character
        answer = json.loads((await response.read()).decode("utf-8", "replace"))
    watch.check()
    return answer


async def apply_template(loaded: LoadedModel, body: Body) -> str:
    return str((await ask(loaded, "/apply-template", body))["prompt"])


async def tokenize(loaded: LoadedModel, text: str, **options: bool) -> list[int]:
    """options: llama.cpp's add_special and parse_special."""
    tokens: list[int] = (await ask(loaded, "/tokenize", {"content": text, **options}))["tokens"]
    return tokens


async def detokenize(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return str((await ask(loaded, "/detokenize", {"tokens": tokens}))["content"])


def is_constrained(body: Body) -> bool:
    return any(body.get(key) for key in CONSTRAINTS)


def require_possible(texts: Iterable[object], loaded: LoadedModel) -> None:
    """Refuse a prompt with more bytes than a full context of the longest tokens: to count them takes minutes.

    Raises ApiError."""
    num_bytes, longest = sum(len(text.encode()) for text in texts if isinstance(text, str)), loaded.facts.longest_token
    least = num_bytes // longest if longest else 0
    if least > loaded.context:
        raise _too_long(f"has at least {least}", least, loaded.context)


def _too_long(has: str, tokens: object, context: object) -> ApiError:
    message = f"the prompt {has} tokens, but the context holds {context}, prompt and answer together; "
    message += "send less, or start the server with a longer --context"
    return ApiError(400, message, "context_length_exceeded", PROMPT, {"n_prompt_tokens": tokens, "n_ctx": context})


class GrammarWatch:
    """Watch over whether llama.cpp gives up the grammar of a request.

    It says so on stderr only, and answers without it. It does not say for which request, so every answer that is
    constrained at that moment is in doubt."""

    def __init__(self, loaded: LoadedModel, body: Body) -> None:
        self._child, self._is_constrained = loaded.child, is_constrained(body)
        self._num_before = self._child.num_grammar_errors

    def check(self) -> None:
        """Raise ApiError where a grammar was given up since the request began."""
        if self._is_constrained and self._child.num_grammar_errors > self._num_before:
            message = f"the engine stopped keeping to the schema or grammar: {self._child.grammar_error[:300]}"
            raise ApiError(502, message, "engine_error")


async def read_events(response: aiohttp.ClientResponse, watch: GrammarWatch) -> AsyncGenerator[Any]:
    """Yield the events of a stream, of the type that its path has. Raises ApiError where it breaks off."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise ApiError(502, "the engine sent a line without an end", "engine_error")
        for line in lines:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                event = json.loads(line[6:].decode("utf-8", "replace"))
                if "error" in event:
                    raise engine_error(event["error"].get("code", 500), line[6:])
                watch.check()
                yield event
            elif line.startswith(b"error: "):
                raise engine_error(500, line[7:])


def engine_error(status: int, body: bytes) -> ApiError:
    """llama.cpp's error as ours, with the counts where it has them."""
    error: JsonObject = {}
    try:
        value = json.loads(body.decode("utf-8", "replace"))
        error = value.get("error", value)
        message, kind = str(error.get("message", "")), str(error.get("type", ""))
    except (ValueError, AttributeError):
        error, message, kind = {}, body.decode("utf-8", "replace")[:500], ""
    if kind == "exceed_context_size_error":
        return _too_long(f"has {error.get('n_prompt_tokens')}", error.get("n_prompt_tokens"), error.get("n_ctx"))
    if too_long := TOO_LONG.search(message):
        tokens, most = map(int, too_long.groups())
        text = f"a text has {tokens} tokens; the limit is {most}"
        return ApiError(400, text, "context_length_exceeded", PROMPT, {"n_prompt_tokens": tokens, "n_ctx": most})
    if status == 501:
        return ApiError(400, message, "not_supported")
    is_ours = status >= 500 and not any(word in message.lower() for word in REQUEST_FAULTS)
    code = "engine_error" if is_ours else None
    return ApiError(502 if is_ours else 400, message[:1000] or "the engine failed without a message", code)
