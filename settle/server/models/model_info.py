"""What is known of a model before anyone uses it, and how fast it is on this machine."""

import re
from importlib.metadata import version
from typing import Literal

from settle.base.errors import EngineError
from settle.infer.child_process import Child, Json, Load
from settle.library.facts import Facts
from settle.library.store import stamp_of
from settle.machine import memory
from settle.machine.cores import cores
from settle.machine.measurement_cache import key, recalled, remembered
from settle.server.errors import ApiError
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_facts import completes_only, facts, template_of
from settle.server.models.model_loader import SHORTEST_CONTEXT, can_ever_fit, estimate_bytes

NUM_PROMPT, NUM_WRITTEN = 256, 64  # tokens of a measurement
NUM_ROUNDS = 2  # of which the best counts
TEXT = "The harbour was quiet in the morning, and the boats came back one after the other with what they had. "

Fit = Literal["yes", "not now", "no"]
ToolSupport = Literal["native", "helped", "no"]


Speed = dict[str, float]  # tokens per second: "prompt", "written"


def describe(entry: ModelEntry) -> Json:
    """All that is known of a model without running it.

    broken: why nothing more is known. unconverted: the GGUF file does not exist yet. The fields from `bytes` on are
    missing then. kind: generate, embed or rerank. needs: bytes of memory.
    """
    info: Json = {
        "name": entry.id,
        "path": str(entry.path),
        "origin": entry.origin,
        "base": entry.base or None,
        "adapter": str(entry.adapter) if entry.adapter else None,
        "broken": None,
        "unconverted": False,
    }
    if entry.is_converted and not entry.path.exists():
        return info | {"unconverted": True}
    try:
        known, template, is_plain = facts(entry.path), template_of(entry), completes_only(entry)
    except ApiError as error:
        return info | {"broken": error.message}
    needs = estimate_bytes(known, min(known.context, SHORTEST_CONTEXT), 1)
    speed: Speed | None = recalled(key("cpu", cores().usable), _measurement_name(entry))
    return info | {
        "bytes": known.bytes,
        "quantization": known.quantization,
        "architecture": known.architecture,
        "parameters": known.parameters,
        "context": known.context,
        "kind": known.use,
        "template": template,
        "completes_only": is_plain,
        "tools": "no" if known.embeds or is_plain else tools_of(template),
        "sampling": {"source": known.sampling.source, **known.sampling.settings},
        "needs": needs,
        "fits": fits(needs),
        "tokens_per_second": speed,
    }


def fits(needs: int) -> Fit:
    if not can_ever_fit(needs):
        return "no"
    return "yes" if needs <= memory().available else "not now"


def tools_of(template: str | None) -> ToolSupport:
    """native: the template writes tools and calls. helped: settle emulates them. no: there is no template.

    Judged by the names that the template reads: a list of models runs none of their templates.
    """
    if not template:
        return "no"
    return "native" if all(re.search(rf"\b{name}\b", template) for name in ("tools", "tool_calls")) else "helped"


def measure_speed(entry: ModelEntry) -> Speed:
    """Measured once, and remembered while the file is the same. Raises EngineError, and ApiError for a broken file."""
    known = facts(entry.path)
    if known.embeds:
        raise EngineError(f"{entry.id} makes embeddings and writes no text", "measure a model that writes text")
    speed: Speed = remembered(key("cpu", cores().usable), _measurement_name(entry), lambda: _measure(entry, known))
    return speed


def _measure(entry: ModelEntry, known: Facts) -> Speed:
    num_prompt, num_written = min(NUM_PROMPT, known.context // 2), min(NUM_WRITTEN, known.context // 4)
    child = Child(Load(entry.path, min(known.context, NUM_PROMPT + NUM_WRITTEN + 16)))
    try:
        child.start()
        ids = child.post("/tokenize", {"content": TEXT * NUM_PROMPT})["tokens"][:num_prompt]
        body = {"prompt": ids, "n_predict": num_written, "ignore_eos": True, "cache_prompt": False, "temperature": 0.0}
        rounds = [child.post("/completion", body)["timings"] for _ in range(NUM_ROUNDS)]
    finally:
        child.close()
    return {
        "prompt": max(float(timings["prompt_per_second"]) for timings in rounds),
        "written": max(float(timings["predicted_per_second"]) for timings in rounds),
    }


def _measurement_name(entry: ModelEntry) -> str:
    """Another file, or another llama.cpp, is measured anew."""
    return f"llama.cpp {version('xllamacpp')} {entry.path.resolve()} {stamp_of(entry.path)}"
