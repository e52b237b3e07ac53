"""Half an hour of everything at once: no answer lost or mixed up, no growth of memory or descriptors.

    python bench/soak.py MODEL.gguf ADAPTER.gguf [--minutes 30] [--clients 12]

`settle serve` runs in a process of its own over a store with the model and the adapter. Clients ask in every shape,
streaming or not; every answer is held by a grammar, a schema or a tool to a text that only this request can have, so
that a mixed-up answer is seen. Meanwhile: one request in ten is left in the middle, one in a hundred kills the child
that answers it, and a new adapter is put beside the first every half minute, which has to be served without a restart.
An answer may end in an error that says so when its child was killed; it may not end without one. At the end the server
is stopped with streams under way, by SIGTERM and by kill -9.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from settle.base.files import write_json
from settle.base.run import Run
from settle.library.store import StoredModel, add_model

RELOAD_SECONDS, SAMPLE_SECONDS = 30.0, 5.0
SLOTS, STREAMS = 4, 8  # streams that are under way when the server is stopped, half of them waiting


def put_adapter(name: str, file: Path, base: Path) -> None:
    """As `settle tune` leaves one."""
    run = Run.create("tune", name)
    shutil.copy(file, run.out / f"{name}-lora.gguf")
    write_json(run.path / "plan.json", {"tuning": {"base": str(base), "base_name": base.stem}})
    write_json(run.path / "result.json", {"verdict": "settled"})


class Soak:
    """What was asked and what came."""

    def __init__(self, address: str, key: str, server: psutil.Process) -> None:
        self.address, self.server = address, server
        self.headers = {"Authorization": f"Bearer {key}"}
        self.models = ["base"]
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[tuple[float, int, int]] = []
        self.killed = 0.0

    async def client(self, session: aiohttp.ClientSession, until: float, seed: int) -> None:
        chance = random.Random(seed)
        number = 0
        while time.monotonic() < until:
            number += 1
            kind = chance.choice([self.chat, self.chat_stream, self.schema, self.tool, self.vector, self.ollama])
            marker = f"{seed} {number}"
            began = time.monotonic()
            try:
                said = await kind(session, marker, chance)
            except (aiohttp.ClientError, ConnectionError) as e:
                said = f"lost: {type(e).__name__}"
            if said.startswith("error") and self.killed > began - 5:
                said = "error told, its child was killed"
            self.counts[said] += 1
            if said.startswith(("lost", "mixed", "error:")):
                self.wrong.append(f"{kind.__name__} {marker}: {said}")
            if chance.random() < 0.01:
                self.kill()

    def kill(self) -> None:
        children = self.server.children()
        if children:
            self.killed = time.monotonic()
            with contextlib.suppress(psutil.NoSuchProcess):
                random.choice(children).send_signal(signal.SIGKILL)
            self.counts["children killed"] += 1

    def body(self, marker: str, chance: random.Random) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Repeat after me: {marker}. " + "word " * chance.randrange(60)}]
        return {"model": chance.choice(self.models), "messages": messages, "max_tokens": 100}

    async def whole(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
        """Return the parsed answer, or a text that describes an error."""
        async with session.post(self.address + path, json=body, headers=self.headers) as answer:
            told = await answer.json()
            return told if answer.status == 200 else f"error: {answer.status} {json.dumps(told)[:200]}"

    async def chat(self, session: aiohttp.ClientSession, marker: str, chance: random.Random) -> str:
        body = self.body(marker, chance) | {"grammar": f'root ::= "this is {marker}"'}
        told = await self.whole(session, "/v1/chat/completions", body)
        return told if isinstance(told, str) else same(told["choices"][0]["message"]["content"], f"this is {marker}")

    async def chat_stream(self, session: aiohttp.ClientSession, marker: str, chance: random.Random) -> str:
        leaves = chance.random() < 0.3
        body = self.body(marker, chance) | {"grammar": f'root ::= "this is {marker}"', "stream": True}
        text, is_done = "", False
        async with session.post(self.address + "/v1/chat/completions", json=body, headers=self.headers) as answer:
            if answer.status != 200:
                return f"error: {answer.status} {(await answer.text())[:200]}"
            async for line in answer.content:
                if leaves and text:
                    return "left in the middle"
                if line.startswith(b"data: [DONE]"):
                    is_done = True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return f"error: {event['error']['message']}"
                    text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        return same(text, f"this is {marker}") if is_done else "lost: no end of the stream"

    async def schema(self, session: aiohttp.ClientSession, marker: str, chance: random.Random) -> str:
        wanted = {"type": "object", "properties": {"said": {"const": marker}}, "required": ["said"]}
        form = {"type": "json_schema", "json_schema": {"schema": wanted | {"additionalProperties": False}}}
        told = await self.whole(session, "/v1/chat/completions", self.body(marker, chance) | {"response_format": form})
        if isinstance(told, str):
            return told
        return same(json.loads(told["choices"][0]["message"]["content"])["said"], marker)

    async def tool(self, session: aiohttp.ClientSession, marker: str, chance: random.Random) -> str:
        wanted = {"type": "object", "properties": {"said": {"const": marker}}, "required": ["said"]}
        parameters = wanted | {"additionalProperties": False}
        tool = {"name": "say", "description": "says it", "input_schema": parameters}
        body = self.body(marker, chance) | {"tools": [tool], "tool_choice": {"type": "any"}}
        told = await self.whole(session, "/v1/messages", body)
        return told if isinstance(told, str) else same(told["content"][-1].get("input", {}).get("said"), marker)

    async def vector(self, session: aiohttp.ClientSession, marker: str, chance: random.Random) -> str:
        told = await self.whole(session, "/v1/embeddings", {"model": "base", "input": [marker, "b"]})
        return told if isinstance(told, str) else same(len(told["data"]), 2)

    async def ollama(self, session: aiohttp.ClientSession, marker: str, chance: random.Random) -> str:
        wanted = {"type": "object", "properties": {"said": {"const": marker}}, "required": ["said"]}
        body = self.body(marker, chance) | {"format": wanted | {"additionalProperties": False}, "stream": False}
        del body["max_tokens"]
        told = await self.whole(session, "/api/chat", body)
        return told if isinstance(told, str) else same(json.loads(told["message"]["content"])["said"], marker)

    async def watch(self, until: float, adapter: Path, base: Path) -> None:
        """Sample the gateway itself, and add new adapters."""
        reloaded, number = time.monotonic(), 0
        while time.monotonic() < until:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.samples.append((time.monotonic(), self.server.memory_info().rss, self.server.num_fds()))
            if time.monotonic() - reloaded > RELOAD_SECONDS:
                number, reloaded = number + 1, time.monotonic()
                for run in Run.all()[:-3]:  # a few at a time
                    self.models = [m for m in self.models if m != f"base:{run.name}"]
                    await asyncio.sleep(2)
                    shutil.rmtree(run.path)
                put_adapter(f"a{number}", adapter, base)
                self.models.append(f"base:a{number}")
                self.counts["adapters added"] += 1


def same(came: Any, wanted: Any) -> str:
    return "right" if came == wanted else f"mixed up: {str(came)[:100]!r} for {wanted!r}"


async def soak(address: str, key: str, pid: int, given: argparse.Namespace, base: Path) -> Soak:
    load = Soak(address, key, psutil.Process(pid))
    until = time.monotonic() + given.minutes * 60
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        clients = [load.client(session, until, seed) for seed in range(given.clients)]
        await asyncio.gather(load.watch(until, given.adapter, base), *clients)
    return load


def started(home: str) -> tuple[subprocess.Popen, str, str]:
    """Start the server; return it with its address and key."""
    command = [sys.executable, "-m", "settle", "serve", "--port", "0", "--context", "1024", "--slots", str(SLOTS)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note = Path(home, "server", "running.json")
    while not note.exists() or json.loads(note.read_text())["pid"] != server.pid:
        time.sleep(0.05)
    return server, json.loads(note.read_text())["address"], Path(home, "server", "key").read_text().strip()


async def stopped(server: subprocess.Popen, address: str, key: str, how: signal.Signals) -> tuple[float, int]:
    """Seconds until the server has ended with streams under way, and how many of its children have not, 2 s later."""
    body = {"model": "base", "messages": [{"role": "user", "content": "Count."}], "stream": True, "ignore_eos": True}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        asked = [
            asyncio.ensure_future(session.post(f"{address}/v1/chat/completions", json=body)) for _ in range(STREAMS)
        ]
        while sum(task.done() for task in asked) < SLOTS:  # the others wait for a slot
            await asyncio.sleep(0.02)
        children = psutil.Process(server.pid).children()
        began = time.monotonic()
        server.send_signal(how)
        await asyncio.to_thread(server.wait)
        seconds = time.monotonic() - began
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    await asyncio.sleep(2)
    return seconds, sum(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SETTLE_HOME"] = home
        add_model(StoredModel("base", "gguf", given.model.absolute(), "", f"file:{given.model}"))
        server, address, key = started(home)
        load = asyncio.run(soak(address, key, server.pid, given, given.model.absolute()))
        seconds, left = asyncio.run(stopped(server, address, key, signal.SIGTERM))
        print(f"SIGTERM with {STREAMS} streams under way: ended after {seconds:.2f} s, {left} children left")
        server, address, key = started(home)
        seconds, left = asyncio.run(stopped(server, address, key, signal.SIGKILL))
        print(f"kill -9 with {STREAMS} streams under way: {left} children left")
    print(json.dumps(dict(load.counts), indent=1))
    warm = load.samples[len(load.samples) // 5 :]
    fifth = max(1, len(warm) // 5)
    for name, place, unit in (("memory of the gateway, MB", 1, 1e6), ("descriptors", 2, 1)):
        first, last = (sum(s[place] for s in part) / len(part) / unit for part in (warm[:fifth], warm[-fifth:]))
        print(f"{name}: {first:.1f} after the first fifth, {last:.1f} at the end")
    print("\n".join(load.wrong[:20]) or "nothing lost, nothing mixed up")


if __name__ == "__main__":
    main()
