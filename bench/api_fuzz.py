"""Sends a server 10,000 requests with something wrong in them, and schemas of every kind, over many connections.

    python bench/api_fuzz.py [--number 10000] [--seed 1] [--clients 4]

A response of 500 or above, a schema that is answered with something else, a request without a response in 60 s, a child
that ended, and memory or files that the server or its children keep are faults. Prints a JSON report; exits with 1
where there is a fault. The model is the tests' own, trained in seconds.
"""

import argparse
import asyncio
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.server.api_fuzz import requests, wrong  # noqa: E402  the root of the repository is not installed

ANSWER_SECONDS = 60
MOST_GROWTH_MB, MOST_NEW_FILES = 96, 16  # from the middle of the requests to their end


class Fuzz:
    """One server under attack. statuses: how often each came. faults: the first of each kind, with its request."""

    def __init__(self, address: str, key: str, pid: int) -> None:
        self.address, self.key, self.server = address, key, psutil.Process(pid)
        self.statuses: collections.Counter[str] = collections.Counter()
        self.faults: dict[str, str] = {}
        self.slowest = 0.0

    async def run(self, queue: "asyncio.Queue[tuple[str, Any]]", session: aiohttp.ClientSession) -> None:
        while not queue.empty():
            path, body = queue.get_nowait()
            began = time.monotonic()
            try:
                async with session.post(self.address + path, data=json.dumps(body).encode()) as response:
                    status, answer = response.status, await response.read()
                fault = wrong(path, body, status, answer)
            except (aiohttp.ClientError, TimeoutError) as e:
                status, fault = 0, f"{type(e).__name__}: {e}"
            self.statuses[str(status)] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            if fault:
                self.faults.setdefault(fault[:60], f"{path} {fault} {json.dumps(body)[:1500]}")

    def state(self) -> dict[str, Any]:
        """Memory in MB and open files of the server and of its children, by what they are."""
        children = {child.pid: child for child in self.server.children()}
        engines = [p for p in children.values() if "server_child" in " ".join(p.cmdline())]
        return {
            "server MB": self.server.memory_info().rss >> 20,
            "engine MB": sum(p.memory_info().rss for p in engines) >> 20,
            "files": self.server.num_fds(),
            "children": len(children),
        }


async def attack(fuzz: Fuzz, given: argparse.Namespace) -> dict[str, Any]:
    everything = list(requests(given.seed, given.number))
    headers = {"Authorization": f"Bearer {fuzz.key}", "Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    states = []
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        for half in (everything[: given.number // 2], everything[given.number // 2 :]):
            queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
            for request in half:
                queue.put_nowait(request)
            await asyncio.gather(*(fuzz.run(queue, session) for _ in range(given.clients)))
            states.append(fuzz.state())
        async with session.get(f"{fuzz.address}/metrics") as answer:
            metrics = await answer.text()
    middle, end = states
    for what, most in (("server MB", MOST_GROWTH_MB), ("engine MB", MOST_GROWTH_MB), ("files", MOST_NEW_FILES)):
        if end[what] - middle[what] > most:
            fuzz.faults[what] = f"{what} grew from {middle[what]} to {end[what]}"
    if 'change="loaded"' not in metrics or 'change="died"' in metrics:  # unloaded is no fault: `keep_alive` asks for it
        fuzz.faults["crash"] = "an engine ended by itself"
    return {"middle": middle, "end": end}


def started(home: Path) -> tuple[subprocess.Popen[bytes], str, str]:
    """Start a server with the tests' model; return the process, its address and its key."""
    os.environ["SETTLE_HOME"] = str(home)
    from tests.server.conftest import add_adapter, fill_store

    add_adapter(home, "notes", fill_store(home))
    command = [
        sys.executable,
        "-m",
        "settle",
        "serve",
        "--port",
        "0",
        "--context",
        "512",
        "--slots",
        "4",
        "--threads",
        "1",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note = home / "server" / "running.json"
    while not note.exists():
        time.sleep(0.05)
    return server, json.loads(note.read_text())["address"], (home / "server" / "key").read_text().strip()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address, key = started(Path(folder))
        began = time.monotonic()
        try:
            fuzz = Fuzz(address, key, server.pid)
            states = asyncio.run(attack(fuzz, given))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        lines = len((Path(folder) / "server" / "audit.jsonl").read_text().splitlines())
    report = {"requests": sum(fuzz.statuses.values()), "statuses": dict(sorted(fuzz.statuses.items()))}
    report |= {"seconds": round(time.monotonic() - began), "slowest s": round(fuzz.slowest, 1), "audit lines": lines}
    print(json.dumps(report | states | {"faults": fuzz.faults}, indent=1))
    return bool(fuzz.faults)


if __name__ == "__main__":
    sys.exit(main())
