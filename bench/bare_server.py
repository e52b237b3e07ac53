"""A server that also reveals llama.cpp's own address behind it, so that both can be compared.

    python bench/bare_server.py MODEL.gguf SLOTS CONTEXT

Prints `{"url", "key"}` of the server, and then of llama.cpp, with the model loaded under the name `m`.
"""

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from settle.audit.door import listen
from settle.base.errors import EngineError
from settle.server import app
from settle.server.audit import Audit
from settle.server.guard import Access, Limits
from settle.server.http_server import run
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_loader import PoolSettings


class Side(NamedTuple):
    """A server under test: its address and key."""

    url: str
    key: str


@contextlib.contextmanager
def both_sides(model: Path, slots: int, context: int) -> Iterator[tuple[Side, Side]]:
    """Serve a model by settle's server, and llama.cpp's of the same child. Raises EngineError."""
    command = [sys.executable, __file__, str(model), str(slots), str(context)]
    # an empty home: llama.cpp alone would apply every adapter over the model to every request
    home = tempfile.TemporaryDirectory()
    environment = os.environ | {"SETTLE_HOME": home.name}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        if not all(lines):
            raise EngineError(f"{model.name} could not be served", f"run `settle chat {model}` to see why")
        yield Side(**json.loads(lines[0])), Side(**json.loads(lines[1]))
    finally:
        process.terminate()
        process.communicate()
        home.cleanup()


def main() -> None:
    model, slots, context = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    entry, key = ModelEntry("m", model.absolute()), secrets.token_urlsafe(24)
    listening = listen("127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        audit = Audit(Path(folder, "audit.jsonl"))
        settings = PoolSettings(context=context, slots=slots, idle_seconds=0)
        server = app.build_app(ModelCatalogue((entry,), is_fixed=True), settings, Access(key), Limits(), audit)
        loading: list[asyncio.Task[None]] = []

        async def print_engine() -> None:
            async with server.gateway.backend.pool.use(entry) as loaded:
                _print(Side(loaded.url, loaded.child.api_key))

        def on_ready() -> None:
            _print(Side(f"http://127.0.0.1:{listening.getsockname()[1]}", key))
            loading.append(asyncio.ensure_future(print_engine()))

        run(server.asgi, listening, on_ready)


def _print(side: Side) -> None:
    sys.stdout.write(json.dumps(side._asdict()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
