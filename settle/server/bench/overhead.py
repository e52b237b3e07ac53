"""What the gateway adds to llama.cpp's own server: time to the first token, and tokens a second, of many streams."""

import asyncio
import json
import statistics
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from settle.server.bench.bare_server import Side, both_sides

CONTEXT = 1024


class Seen(NamedTuple):
    """first: seconds to the first token, the median of the streams. rate: tokens a second of all of them."""

    first: float
    rate: float


class Overhead(NamedTuple):
    """Of so many streams at once: medians over the rounds; ratios and added are of one round each."""

    streams: int
    bare: Seen
    settle: Seen
    ratios: list[float]
    added: list[float]


def overhead(model: Path, streams: list[int], rounds: int, tokens: int) -> Iterator[Overhead]:
    """One for each number of streams. Both sides are the same child process, asked in turns. Raises EngineError."""
    with both_sides(model, max(streams), CONTEXT) as (ours, theirs):
        for number in streams:
            yield asyncio.run(_compared(ours, theirs, number, rounds, tokens))


async def _compared(ours: Side, theirs: Side, streams: int, rounds: int, tokens: int) -> Overhead:
    for side in (theirs, ours):  # from here on every prompt is cached, for both
        await _measured(side, streams, tokens)
    seen: dict[Side, list[Seen]] = {ours: [], theirs: []}
    for number in range(rounds):
        for side in (theirs, ours)[:: 1 if number % 2 else -1]:
            seen[side].append(await _measured(side, streams, tokens))
    pairs = list(zip(seen[ours], seen[theirs], strict=True))
    ratios, added = [a.rate / b.rate for a, b in pairs], [a.first - b.first for a, b in pairs]
    return Overhead(streams, _median(seen[theirs]), _median(seen[ours]), ratios, added)


async def _measured(side: Side, streams: int, tokens: int) -> Seen:
    began = time.perf_counter()
    done = await asyncio.gather(*(_stream(side, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began
    return Seen(statistics.median(first for first, _ in done), sum(count for _, count in done) / seconds)


async def _stream(side: Side, number: int, tokens: int) -> tuple[float, int]:
    """Seconds to the first token, and how many came."""
    where = urllib.parse.urlsplit(side.url)
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": f"Tell me the story number {number}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,  # all answers are equally long
        "stream": True,
    }
    body = json.dumps(asked).encode()
    head = [f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}", f"Authorization: Bearer {side.key}"]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", "", ""]
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    began, first, count, rest = time.perf_counter(), 0.0, 0, b""
    writer.write("\r\n".join(head).encode() + body)
    while piece := await reader.read(1 << 16):
        *events, rest = (rest + piece).split(b"\n\n")
        count += sum(b'"content":"' in event or b'"content": "' in event for event in events)
        first = first or (time.perf_counter() - began if count else 0.0)
    writer.close()
    return first, count


def _median(seen: list[Seen]) -> Seen:
    return Seen(statistics.median(s.first for s in seen), statistics.median(s.rate for s in seen))
