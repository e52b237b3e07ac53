"""A server that tells its child's own address too, so that both can be asked and compared.

    python -m settle.server.bench.bare_server MODEL.gguf SLOTS CONTEXT

Prints `{"url", "key"}` of the server, and then that of llama.cpp behind it, with the model loaded under the name `m`.
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

from settle.base.errors import EngineError
from settle.server import app
from settle.server.audit import Audit
from settle.server.gateway import Gateway
from settle.server.models.model_catalogue import Catalogue, Entry
from settle.server.models.model_pool import Keeping


class Side(NamedTuple):
    """Where to ask, and with which key."""

    url: str
    key: str


@contextlib.contextmanager
def both_sides(model: Path, slots: int, context: int) -> Iterator[tuple[Side, Side]]:
    """settle's server, and llama.cpp's of the same child. Raises EngineError."""
    command = [sys.executable, "-m", "settle.server.bench.bare_server", str(model), str(slots), str(context)]
    # an empty home: llama.cpp alone would apply every adapter over the model that there is to every request
    home = tempfile.TemporaryDirectory()
    environment = os.environ | {"SETTLE_HOME": home.name}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        if not all(lines):
            raise EngineError(f"{model.name} could not be served", f"`settle chat {model}` may tell why")
        yield Side(**json.loads(lines[0])), Side(**json.loads(lines[1]))
    finally:
        process.terminate()
        process.communicate()
        home.cleanup()


def main() -> None:
    model, slots, context = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    entry, key = Entry("m", model.absolute()), secrets.token_urlsafe(24)
    listening = app.listen("127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        audit = Audit(Path(folder, "audit.jsonl"))
        keeping = Keeping(context=context, slots=slots, idle_seconds=0)
        guarded = app.build_app(Catalogue((entry,), only=True), keeping, app.Serving(key=key), audit)
        gateway: Gateway = guarded.app.state.gateway
        loading: list[asyncio.Task] = []

        async def tell() -> None:
            async with gateway.keeper.use(entry) as loaded:
                _print({"url": loaded.url, "key": loaded.child.api_key})

        def ready() -> None:
            _print({"url": f"http://127.0.0.1:{listening.getsockname()[1]}", "key": key})
            loading.append(asyncio.ensure_future(tell()))

        app.run(guarded, listening, ready)


def _print(value: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
