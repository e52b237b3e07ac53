"""Files that a browser hands over: written to SETTLE_HOME/uploads as they arrive, whole or not at all."""

import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse
from nicegui import app
from nicegui.element import Element
from nicegui.events import GenericEventArguments
from starlette.requests import ClientDisconnect

from settle.base.errors import ResourceError
from settle.base.files import home
from settle.base.visible import visible_line
from settle.base.words.amounts import amount
from settle.studio.visit import report

KEPT_FREE = 1 << 28  # bytes of the disk that an upload leaves
LONGEST_NAME = 200  # bytes


class Drop(Element, component="drop.js"):
    """on_stored: called with the path of each file."""

    def __init__(self, label: str, on_stored: Callable[[str], Awaitable[None]]) -> None:
        super().__init__()
        self.props["label"] = label

        async def stored(event: GenericEventArguments) -> None:
            path = Path(str(event.args))
            if path.parent == uploads() and path.is_file():
                await on_stored(str(path))

        self.on("stored", stored)
        self.on("refused", lambda event: report(ResourceError(visible_line(str(event.args)), "")))


def uploads() -> Path:
    """Where files lie that were dropped on the page."""
    return home() / "uploads"


@app.put("/uploads")
async def store(name: str, request: Request) -> JSONResponse:
    """Store the body of the request as a file of that name, or of the name with a number where there is one already."""
    name = name.replace("\\", "/").rpartition("/")[2].replace("\0", "").lstrip(".")
    name = name.encode()[-LONGEST_NAME:].decode(errors="ignore") or "file"
    folder = uploads()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    length = int(request.headers.get("content-length") or 0)
    free = max(0, shutil.disk_usage(folder).free - KEPT_FREE)
    too_large = _refused(f"{name} is larger than the {amount(free, 'bytes')} that the disk has free")
    if length > free:
        return too_large
    beside = folder / f".{id(request)}.part"
    try:
        with beside.open("wb") as f:
            async for piece in request.stream():
                free -= len(piece)  # what is sent in pieces does not say its length
                if free < 0:
                    return too_large
                f.write(piece)
        path = _free(folder / name)
        beside.rename(path)
    except ClientDisconnect:
        return _refused("the browser left")
    except OSError as e:
        return _refused(f"{name} could not be written: {e.strerror}")
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return JSONResponse({"path": str(path)})


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _refused(why: str) -> JSONResponse:
    return JSONResponse({"error": why})
