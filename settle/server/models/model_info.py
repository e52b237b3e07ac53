"""What there is to say of a model before anybody asks it anything, and how fast it is here."""

import http.client
import json
from typing import Any, Literal

from settle.base.chat_template import ChatTemplate, TemplateFailure
from settle.base.errors import EngineError
from settle.infer.child_process import Child, Load
from settle.library.store import stamp_of
from settle.machine import memory
from settle.machine.cores import cores
from settle.machine.measurement_cache import key, recalled, remembered
from settle.server.errors import Refusal
from settle.server.models.model_catalogue import CONVERTED, Entry, Facts, facts, template_of
from settle.server.models.model_pool import SHORTEST, needed

PROMPT, WRITTEN, ROUNDS = 256, 64, 2  # tokens read and written, and how often: the best counts
SECONDS = 600.0
TEXT = "The harbour was quiet in the morning, and the boats came back one after the other with what they had. "
PROBE = "probe_of_tools"

Tools = Literal["native", "helped", "no"]


def described(entry: Entry) -> dict[str, Any]:
    """Plain JSON values; `broken` says why nothing more is known. tokens_per_second: as measured here, or None."""
    told: dict[str, Any] = {
        "name": entry.id,
        "path": str(entry.path),
        "origin": entry.origin,
        "base": entry.base or None,
    }
    told |= {"adapter": str(entry.adapter) if entry.adapter else None, "broken": None, "unconverted": False}
    if not entry.path.exists() and entry.path.name.endswith(CONVERTED):
        return told | {"unconverted": True}
    try:
        known, template = facts(entry.path), template_of(entry)
    except Refusal as refusal:
        return told | {"broken": refusal.message}
    needs = needed(known, min(known.context, SHORTEST), 1)
    return told | {
        "bytes": known.bytes,
        "quantization": known.quantization,
        "architecture": known.architecture,
        "parameters": known.parameters,
        "context": known.context,
        "kind": "rerank" if known.reranks else "embed" if known.embeds else "generate",
        "template": template,
        "tools": "no" if known.embeds else tools_of(template),
        "needs": needs,
        "fits": fits(needs),
        "tokens_per_second": recalled(_machine(), _measured_as(entry)),
    }


def fits(needs: int) -> str:
    """Whether there is room for so many bytes: yes, not now, or no."""
    room = memory()
    if needs > room.total * 0.95:
        return "no"
    return "yes" if needs <= room.available else "not now"


def tools_of(template: str | None) -> Tools:
    """native: the template writes what may be called, and calls. helped: it does not, and settle does it instead.
    no: there is none, so the model takes no turns."""
    if not template:
        return "no"
    return "native" if any(_writes_calls(template, arguments) for arguments in ({}, "{}")) else "helped"


def _writes_calls(template: str, arguments: Any) -> bool:
    """Some templates take the arguments of a call as an object, others as its text."""
    function = {"name": PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}}
    called = {"name": f"{PROBE}_called", "arguments": arguments}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "u"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00001", "type": "function", "function": called}],
        },
        {"role": "tool", "content": "r", "tool_call_id": "call00001", "name": PROBE},
        {"role": "assistant", "content": "a"},
    ]
    try:
        text = ChatTemplate(template).render(turns, [{"type": "function", "function": function}])
    except TemplateFailure:
        return False
    return called["name"] in text and PROBE in text.replace(called["name"], "")


def measured(entry: Entry) -> dict[str, float]:
    """Tokens a second that a model reads and writes here, remembered for as long as its file is the same.
    Raises EngineError, and Refusal for a broken file."""
    known = facts(entry.path)
    if known.embeds:
        raise EngineError(f"{entry.id} makes embeddings and writes nothing", "measure a model that writes")
    found: dict[str, float] = remembered(_machine(), _measured_as(entry), lambda: _measure(entry, known))
    return found


def _measure(entry: Entry, known: Facts) -> dict[str, float]:
    prompt, written = min(PROMPT, known.context // 2), min(WRITTEN, known.context // 4)
    child = Child(Load(entry.path, min(known.context, PROMPT + WRITTEN + 16)))
    try:
        child.start()
        ids = _post(child, "/tokenize", {"content": TEXT * PROMPT})["tokens"][:prompt]
        body = {"prompt": ids, "n_predict": written, "ignore_eos": True, "cache_prompt": False, "temperature": 0.0}
        rounds = [_post(child, "/completion", body)["timings"] for _ in range(ROUNDS)]
    finally:
        child.close()
    return {
        "prompt": max(float(timings["prompt_per_second"]) for timings in rounds),
        "written": max(float(timings["predicted_per_second"]) for timings in rounds),
    }


def _post(child: Child, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(child.address.hostname, child.address.port, timeout=SECONDS)
    headers = {"Authorization": f"Bearer {child.api_key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        said = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        raise child.died() from None
    finally:
        connection.close()
    if response.status != 200:
        raise EngineError(f"llama.cpp refused {path}: {said[:300]}", "check the file with `settle models show`")
    value: dict[str, Any] = json.loads(said)
    return value


def _machine() -> dict[str, Any]:
    return key("cpu", cores().usable)


def _measured_as(entry: Entry) -> str:
    """What a measurement is remembered under: another file, or another llama.cpp, is another one."""
    from importlib.metadata import version

    return f"llama.cpp {version('xllamacpp')} {entry.path.resolve()} {stamp_of(entry.path)}"
