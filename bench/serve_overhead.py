"""What the server costs beside llama.cpp's own: time to the first token, and tokens per second, of many streams.

    python bench/serve_overhead.py MODEL [--streams 1 8 32] [--rounds 5] [--tokens 64]

Both are the same process, measured in turns: llama.cpp's port, and settle's in front of it.
"""

import argparse
import asyncio
import json
import statistics
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bare_server import Side, both_sides

from settle.library.resolve import resolve_gguf

CONTEXT = 1024  # tokens of each stream
COLUMNS = ("streams", "llama.cpp, tokens/s", "settle", "ratio", "first token", "settle adds")


class Measurement(NamedTuple):
    """first: seconds to the first token, the median of the streams. rate: tokens per second of all of them."""

    first: float
    rate: float


class Overhead(NamedTuple):
    """The result of a number of streams at once.

    bare, settle: medians over the rounds. ratios, added: the ratio of the rates, and the seconds that settle adds to
    the first token, one per round.
    """

    streams: int
    bare: Measurement
    settle: Measurement
    ratios: list[float]
    added: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def added_ms(self) -> float:
        return statistics.median(self.added) * 1e3

    def row(self) -> list[object]:
        return [
            self.streams,
            f"{self.bare.rate:.0f}",
            f"{self.settle.rate:.0f}",
            f"{self.ratio:.3f} ({min(self.ratios):.3f}–{max(self.ratios):.3f})",
            f"{self.bare.first * 1e3:.1f} ms",
            f"{self.added_ms:+.1f} ms",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a model of the store, or a .gguf file; it needs a chat template")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="answers at the same time")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per server")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    asked = parser.parse_args()
    print("  ".join(COLUMNS))
    for result in measure_overhead(resolve_gguf(asked.model).weights, asked.streams, asked.rounds, asked.tokens):
        print("  ".join(map(str, result.row())), flush=True)


def measure_overhead(model: Path, streams: Sequence[int], rounds: int, tokens: int) -> Iterator[Overhead]:
    """One for each number of streams. Both sides are the same child process, in turns. Raises EngineError."""
    with both_sides(model, max(streams), CONTEXT) as (ours, bare):
        for number in streams:
            yield asyncio.run(_compare(ours, bare, number, rounds, tokens))


async def _compare(ours: Side, bare: Side, streams: int, rounds: int, tokens: int) -> Overhead:
    for side in (bare, ours):  # from here on every prompt is cached, for both
        await _measure(side, streams, tokens)
    measured: dict[Side, list[Measurement]] = {ours: [], bare: []}
    for number in range(rounds):
        for side in (bare, ours)[:: 1 if number % 2 else -1]:
            measured[side].append(await _measure(side, streams, tokens))
    pairs = list(zip(measured[ours], measured[bare], strict=True))
    ratios, added = [a.rate / b.rate for a, b in pairs], [a.first - b.first for a, b in pairs]
    return Overhead(streams, _median(measured[bare]), _median(measured[ours]), ratios, added)


async def _measure(side: Side, streams: int, tokens: int) -> Measurement:
    began = time.perf_counter()
    done = await asyncio.gather(*(_stream(side, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began
    return Measurement(statistics.median(first for first, _ in done), sum(count for _, count in done) / seconds)


async def _stream(side: Side, number: int, tokens: int) -> tuple[float, int]:
    """Seconds to the first token, and the number of tokens."""
    address = urllib.parse.urlsplit(side.url)
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": f"Tell me the story number {number}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,  # all answers are equally long
        "stream": True,
    }
    body = json.dumps(request).encode()
    head = [f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}", f"Authorization: Bearer {side.key}"]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", "", ""]
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    began, first, count, rest = time.perf_counter(), 0.0, 0, b""
    writer.write("\r\n".join(head).encode() + body)
    while piece := await reader.read(1 << 16):
        *events, rest = (rest + piece).split(b"\n\n")
        count += sum(b'"content":"' in event or b'"content": "' in event for event in events)
        first = first or (time.perf_counter() - began if count else 0.0)
    writer.close()
    return first, count


def _median(measured: list[Measurement]) -> Measurement:
    return Measurement(statistics.median(m.first for m in measured), statistics.median(m.rate for m in measured))


if __name__ == "__main__":
    main()
