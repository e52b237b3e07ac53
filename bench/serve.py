"""What the gateway adds to llama.cpp's own server: time to the first token and tokens/s, at 1, 8 and 32 streams.

    python bench/serve.py MODEL.gguf [--streams 1 8 32] [--rounds 5] [--tokens 64]

Both sides are the same child process: its own port, and `settle serve` in front of it, in turns. Every stream is a
chat of its own on a connection of its own, greedy, with the end of text ignored so that all answers are equally long;
the client is this process, the same for both. The gateway runs in a process of its own, as people run it.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

# runs the server with the child's own address noted, so that both sides ask the same process
SERVER = """
import json, sys
from pathlib import Path
from settle.server import app, keeper
from settle.server.audit import Audit
from settle.server.catalogue import Catalogue, Entry
path, slots, key = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
keeping = keeper.Keeping(context=int((*sys.argv, 1024)[5]), slots=slots)
catalogue, audit = Catalogue((Entry("m", path),), only=True), Audit(Path(sys.argv[4]))
guard = app.build_app(catalogue, keeping, app.Serving(key=key), audit)
listening = app.listen("127.0.0.1", 0)
load = keeper.Keeper._load
async def noted(self, *given):
    loaded = await load(self, *given)
    print(json.dumps({"bare": loaded.url, "key": loaded.child.api_key}), flush=True)
    return loaded
keeper.Keeper._load = noted
port = listening.getsockname()[1]
app.run(guard, listening, lambda: print(json.dumps({"gateway": f"http://127.0.0.1:{port}"}), flush=True))
"""


class Side(NamedTuple):
    url: str
    key: str


class Seen(NamedTuple):
    """first: seconds to the first token of each stream. rate: tokens a second of all streams together."""

    first: list[float]
    rate: float


async def stream(side: Side, number: int, tokens: int) -> tuple[float, int]:
    """Seconds to the first token, and how many came."""
    where = urllib.parse.urlsplit(side.url)
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": f"Tell me the story number {number}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    body = json.dumps(asked).encode()
    lines = [f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}", f"Authorization: Bearer {side.key}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", "", ""]
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    began, first, count, rest = time.perf_counter(), 0.0, 0, b""
    writer.write("\r\n".join(lines).encode() + body)
    while piece := await reader.read(1 << 16):
        rest += piece
        count += rest.count(b'"content":"') + rest.count(b'"content": "')
        first = first or (time.perf_counter() - began if count else 0.0)
        rest = rest[-10:] if b"\n\n" in rest[-10:] else b""
    writer.close()
    return first, count


async def measure(side: Side, streams: int, tokens: int) -> Seen:
    began = time.perf_counter()
    done = await asyncio.gather(*(stream(side, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began
    return Seen([first for first, _ in done], sum(count for _, count in done) / seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    key, folder = "bench-key-0123456789", tempfile.TemporaryDirectory()
    command = [sys.executable, "-c", SERVER, str(asked.model), str(max(asked.streams)), key, f"{folder.name}/audit"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as server:
        assert server.stdout
        gateway = Side(json.loads(server.stdout.readline())["gateway"], key)
        asyncio.run(measure(gateway, 1, 2))  # loads the model
        told = json.loads(server.stdout.readline())
        bare = Side(told["bare"], told["key"])
        print("| streams | bare, tokens/s | settle | ratio | bare, ms to first token | settle adds |")
        print("|--:|--:|--:|--:|--:|--:|")
        for streams in asked.streams:
            print(compared(bare, gateway, streams, asked.rounds, asked.tokens), flush=True)
        server.terminate()
    folder.cleanup()


def compared(bare: Side, gateway: Side, streams: int, rounds: int, tokens: int) -> str:
    """One row: medians, and the smallest and largest ratio of a round."""
    sides: dict[str, list[Seen]] = {"bare": [], "settle": []}
    for side in (bare, gateway):
        asyncio.run(measure(side, streams, tokens))  # prompts are cached from here on, for both
    for number in range(rounds):
        for name, side in (("bare", bare), ("settle", gateway))[:: 1 if number % 2 else -1]:
            sides[name].append(asyncio.run(measure(side, streams, tokens)))
    rates: dict[str, Any] = {name: [seen.rate for seen in found] for name, found in sides.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["settle"], rates["bare"], strict=True)]
    firsts = {name: [statistics.median(seen.first) * 1e3 for seen in found] for name, found in sides.items()}
    added = [ours - theirs for ours, theirs in zip(firsts["settle"], firsts["bare"], strict=True)]
    median = statistics.median
    return (
        f"| {streams} | {median(rates['bare']):.0f} | {median(rates['settle']):.0f} | {median(ratios):.3f} "
        f"({min(ratios):.3f}–{max(ratios):.3f}) | {median(firsts['bare']):.1f} | {median(added):+.1f} ms |"
    )


if __name__ == "__main__":
    main()
