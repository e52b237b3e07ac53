"""What `settle models` shows: the models that can be served, and all that is known of one."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

from settle.base.errors import EngineError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, Progress, ResultReady, Warn
from settle.base.files.dated_file import age
from settle.infer.child_process import Child, Json, Load
from settle.library.catalogue import catalogue_file
from settle.library.facts import Facts
from settle.library.pull import origin_in_words
from settle.library.store import StoredModel, all_models, damaged_models, stamp_of
from settle.machine import memory
from settle.machine.cores import cores
from settle.machine.measurement_cache import key, recalled, remembered
from settle.model.source import hash_of
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry, completes_only, facts, make_file, template_of
from settle.server.models.model_loader import SHORTEST_CONTEXT, can_ever_fit, estimate_bytes
from settle.wire.errors import ApiError

COLUMNS = ("name", "size", "type", "parameters", "context", "template", "tools", "fits here", "tokens/s", "what")
USES = {"embed": "embeddings", "rerank": "reranker", "generate": ""}


def list_models(names: Sequence[str], measure: bool, events: Events) -> int:
    """List the models of these names, or all; return the exit code. Raises UsageError for an unknown name.

    measure: first measure how fast they are, those named or all that write."""
    catalogue = ModelCatalogue()
    entries = [_find(catalogue, name) for name in names] or catalogue.entries()
    failed = _measure_all(entries, bool(names), events) if measure else []
    for error in damaged_models():
        events.emit(Warn(text=str(error)))
    models = [describe(entry) for entry in entries]
    note = "`settle serve` serves them; `settle models show NAME` shows more"
    hint = note if models else "no models yet; get one: `settle pull smollm2`"
    known = catalogue_file()
    hint += f"; catalogue of {known.known_date}, {age(known.known_date)}"
    events.emit(Listing(columns=COLUMNS, rows=[_row(model) for model in models], note=hint))
    listed = [{**model, "template": bool(model.get("template"))} for model in models]
    events.emit(ResultReady(result={"models": listed, "failed": failed}))
    return 1 if failed else 0


def show_model(name: str, events: Events) -> None:
    """Show all that is known of one model. Raises UsageError for an unknown name."""
    catalogue = ModelCatalogue()
    entry = _find(catalogue, name)
    info = describe(entry)
    stored = next((m for m in all_models() if m.name == entry.id.removeprefix("store:")), None)
    license, sha256 = stored.license if stored else "", _sha256(entry, stored)
    over = [e.id for e in catalogue.entries() if e.adapter and not entry.adapter and e.path == entry.path]
    rows: list[list[object]] = [
        ["file", info["path"]],
        ["adapter", info["adapter"]],
        ["over", info["base"]],
        ["broken", info["broken"]],
        ["sha256", sha256],
        ["from", origin_in_words(info["origin"])],
        ["license", license],
        ["also called", ", ".join(entry.aliases)],
        ["adapters over it", ", ".join(over)],
        *_facts_rows(info),
    ]
    events.emit(Listing(title=entry.id, columns=("", ""), rows=[row for row in rows if row[1]]))
    template = info.get("template")
    if template:
        events.emit(AnswerText(text=template.rstrip("\n") + "\n"))
    known = {"license": license, "aliases": list(entry.aliases), "sha256": sha256, "adapters": over}
    events.emit(ResultReady(result={"model": {**info, **known}}))


def _measure_all(entries: Sequence[ModelEntry], are_named: bool, events: Events) -> list[dict[str, str]]:
    failed = []
    chosen = [entry for entry in entries if are_named or _is_measured_unasked(describe(entry))]
    for done, entry in enumerate(chosen):
        events.emit(Progress(what="measuring", done=done, total=len(chosen), unit="models"))
        try:
            make_file(entry)
            measure_speed(entry)
        except (SettleError, ApiError) as e:
            why = e.what.splitlines()[0] if isinstance(e, SettleError) else e.message
            failed.append({"name": entry.id, "why": why})
            events.emit(Warn(text=f"{entry.id} is not measured: {why}"))
    return failed


def _is_measured_unasked(model: Json) -> bool:
    """Return whether a model is measured unless it is named.

    An adapter is as fast as its base; a broken, too large, or unconverted model is measured only by its name."""
    return not model["adapter"] and model.get("kind") == "generate" and model["fits"] == "yes"


def _find(catalogue: ModelCatalogue, name: str) -> ModelEntry:
    try:
        return catalogue.find(name)
    except ApiError:
        known = ", ".join(entry.id for entry in catalogue.entries())
        raise UsageError(f"there is no model {name!r}", f"known: {known}" if known else "`settle pull NAME`") from None


def _row(model: Json) -> list[object]:
    if model["broken"]:
        return [model["name"], *[""] * 8, f"broken: {model['broken']}"]
    if model["unconverted"]:
        return [model["name"], *[""] * 8, "converted to GGUF when it is first used"]
    use = "completes text" if model["completes_only"] else USES[model["kind"]]
    return [
        model["name"],
        {"value": model["bytes"], "unit": "bytes"},
        model["quantization"],
        {"value": model["parameters"], "unit": "count"},
        {"value": model["context"], "unit": "count"},
        "✓" if model["template"] and not model["completes_only"] else "–",
        model["tools"],
        model["fits"],
        _speed(model),
        f"adapter over {model['base']}" if model["adapter"] else use,
    ]


def _facts_rows(info: Json) -> list[list[object]]:
    if info["unconverted"]:
        return [["", "converted to GGUF when it is first used"]]
    if "kind" not in info:
        return []
    settings = {name: value for name, value in info["sampling"].items() if name != "source"}
    drawn = ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in settings.items())
    drawn += f" ({info['sampling']['source']})"
    template = "as follows" if info["template"] else "none: it completes text and takes no turns"
    if info["completes_only"]:
        template = "as follows, and not learned: it was trained on plain text, and completes it"
    return [
        ["size", {"value": info["bytes"], "unit": "bytes"}],
        ["type", info["quantization"]],
        ["architecture", info["architecture"]],
        ["parameters", {"value": info["parameters"], "unit": "count"}],
        ["context", {"value": info["context"], "unit": "tokens"}],
        ["memory it needs", {"value": info["needs"], "unit": "bytes"}],
        ["fits here", info["fits"]],
        ["tools", info["tools"]],
        ["tokens/s", _speed(info) or "`settle models --measure` measures it"],
        ["answers are drawn with", drawn if info["kind"] == "generate" else ""],
        ["chat template", template],
    ]


def _speed(model: Json) -> str:
    speed = model["tokens_per_second"]
    return f"{speed['prompt']:,.0f} read, {speed['written']:,.0f} written" if speed else ""


def _sha256(entry: ModelEntry, stored: StoredModel | None) -> str:
    """Return the recorded hash while the stored files are unchanged; otherwise compute it from the file."""
    if stored and stored.path.exists() and stored.stamp == stamp_of(stored.path):
        return stored.sha256
    path = entry.adapter or entry.path
    return hash_of(path) if path.is_file() else ""


NUM_PROMPT, NUM_WRITTEN = 256, 64  # tokens of a measurement
NUM_ROUNDS = 2  # of which the best counts
TEXT = "The harbour was quiet in the morning, and the boats came back one after the other with what they had. "

Fit = Literal["yes", "not now", "no"]
ToolSupport = Literal["native", "helped", "no"]


Speed = dict[str, float]  # tokens per second: "prompt", "written"


def describe(entry: ModelEntry) -> Json:
    """Return all that is known of a model without running it.

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
