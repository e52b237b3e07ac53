"""Requests to a llama.cpp child, and what it says of those it refuses."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from settle.server.errors import Refusal
from settle.server.models.model_pool import Loaded

LONGEST_LINE = 1 << 26
MOST_ATTEMPTS = 3
# an embedding's text must go through the model in one piece
TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large to process.*current batch size: (\d+)")


async def open_stream(session: aiohttp.ClientSession, loaded: Loaded, path: str, body: dict) -> aiohttp.ClientResponse:
    """The answer of a child that is about to come; close it to stop the child. Raises Refusal."""
    # llama.cpp hangs up after a stream, and on connections that were idle for long: one that we take up again at that
    # moment is lost before the request is read, while the child is well
    headers = loaded.headers | ({"Connection": "close"} if body.get("stream") else {})
    data = json.dumps(body).encode()
    for attempt in range(MOST_ATTEMPTS):
        try:
            response = await session.post(loaded.url + path, data=data, headers=headers)
            break
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if attempt + 1 == MOST_ATTEMPTS or not loaded.child.alive():
                raise
    if response.status != 200:
        try:
            raise refused(response.status, await response.read())
        finally:
            response.release()
    return response


async def ask(session: aiohttp.ClientSession, loaded: Loaded, path: str, body: dict) -> Any:
    """A whole answer, parsed. Raises Refusal."""
    async with await open_stream(session, loaded, path, body) as response:
        # errors="replace": a byte-level token can be half a character
        return json.loads((await response.read()).decode("utf-8", "replace"))


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a stream. Raises Refusal where it breaks off with an error."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise Refusal(502, "the engine answers with a line that does not end", "engine_error")
        for line in lines:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                event = json.loads(line[6:].decode("utf-8", "replace"))
                if "error" in event:
                    raise refused(event["error"].get("code", 500), line[6:])
                yield event
            elif line.startswith(b"error: "):
                raise refused(500, line[7:])


def refused(status: int, said: bytes) -> Refusal:
    """llama.cpp's refusal in our words, with the counts where it gives them."""
    try:
        error = json.loads(said.decode("utf-8", "replace"))
        error = error.get("error", error)
        message, kind = str(error.get("message", "")), str(error.get("type", ""))
    except (ValueError, AttributeError):
        error, message, kind = {}, said.decode("utf-8", "replace")[:500], ""
    if kind == "exceed_context_size_error":
        prompt, context = error.get("n_prompt_tokens"), error.get("n_ctx")
        return Refusal(
            400,
            f"the prompt has {prompt} tokens and the context holds {context}, prompt and answer together; "
            "send less, or start the server with a longer --context",
            "context_length_exceeded",
            "messages",
            {"n_prompt_tokens": prompt, "n_ctx": context},
        )
    too_long = TOO_LONG.search(message)
    if too_long:
        tokens, most = map(int, too_long.groups())
        said = f"a text has {tokens} tokens and {most} are the most here"
        counts = {"n_prompt_tokens": tokens, "n_ctx": most}
        return Refusal(400, said, "context_length_exceeded", "input", counts)
    if status == 501:
        return Refusal(400, message, "not_supported")
    is_ours = status >= 500 and not any(word in message.lower() for word in ("template", "jinja", "grammar", "parse"))
    return Refusal(502 if is_ours else 400, message[:1000] or "the engine refused", "engine_error" if is_ours else None)
