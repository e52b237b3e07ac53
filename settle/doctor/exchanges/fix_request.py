"""The fix of a request: one setting, as the API that it was recorded from spells it."""

import json
from collections.abc import Mapping
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.files import write_json
from settle.doctor.findings import Fix
from settle.wire.exchange import Request
from settle.wire.formats import WireFormat
from settle.wire.formats.openai import OpenAIFormat

FILE = "request-fixed.json"


def request_fix(request: Request, setting: str, value: object) -> Fix:
    """Return the fix that sends `setting` with every request; it can write the recorded request with it."""
    changed = WireFormat.part(request.api)().changed(setting, value)
    command, out = json.dumps(changed, ensure_ascii=False)[1:-1], Path.cwd() / FILE

    def write() -> str:
        if out.exists():
            raise UsageError(f"{out.name} is there already", "move it away, or use it")
        write_json(out, _with(request.body or OpenAIFormat().body(request), changed))
        return f"wrote {out}: the recorded request with {command}; set the same in your client"

    return Fix(f"send {command} with the request", command, write)


def setting_text(request: Request, setting: str, value: object) -> str:
    """Return a setting as the client would write it."""
    return json.dumps(WireFormat.part(request.api)().changed(setting, value), ensure_ascii=False)[1:-1]


def _with(body: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`body` with `changes` in it, also in the objects that it holds."""
    changed = dict(body)
    for name, value in changes.items():
        inner = changed.get(name)
        changed[name] = _with(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return changed
