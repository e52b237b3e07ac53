"""`settle plan tune` without a model: every model that can be tuned, and what that takes on a machine."""

from collections.abc import Iterator

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.base.words.amounts import three_digits
from settle.library.catalogue import catalogue, find_known
from settle.library.facts import read_facts
from settle.library.model_shape import ModelShape
from settle.library.resolve import all_refs
from settle.machine.described_machine import Machine, machine_or_this
from settle.plan.fit.model_shapes import shape_of_file
from settle.plan.memory_model import room
from settle.plan.report import PlanSettings
from settle.plan.report.tune import MethodOption, best_option, tokens_to_learn

ADAPTERS = ("lora", "qlora")  # the finer first
COLUMNS = ["model", "is here", "parameters", "licence", "memory", "fits", "tokens/s", "time"]


def list_tunable(settings: PlanSettings, events: Events) -> None:
    """List the models of this machine and those that `settle pull` gets, those that are here first, by size.

    In JSON `bytes` is of the download or the files, `rate` in tokens/s with its interval of 80 %, and `chats` whether
    the model answers in a conversation. Raises UsageError.
    """
    tokens, machine = tokens_to_learn(settings), machine_or_this(settings.machine)
    rows, known = [], []
    found = sorted(_candidates(), key=lambda pair: (not pair[0]["is_here"], pair[1].parameters))
    for about, shape in found:
        options = [best_option(method, shape, settings, machine, tokens) for method in ADAPTERS]
        option = next((option for option in options if option.fits(machine) != "no"), None)
        rows.append([
            about["name"], "yes" if about["is_here"] else f"settle pull {about['name']}",
            {"value": shape.parameters, "unit": "count"}, about["license"] or "not stated", *_cells(option, machine),
        ])  # fmt: skip
        rate, memory = (option.rate, option.memory.value) if option else (None, None)
        known.append({
            **about, "parameters": shape.parameters, "fits": option.fits(machine) if option else "no", "memory": memory,
            "rate": [rate.value, rate.low, rate.high] if rate else None,
        })  # fmt: skip
    title = f"tuning on {machine.label}, {tokens:,.0f} tokens"
    events.emit(Listing(title=title, columns=COLUMNS, rows=rows))
    events.emit(ResultReady(result={"machine": machine.label, "room": room(machine), "models": known}))


def _cells(option: MethodOption | None, machine: Machine) -> list[object]:
    if option is None:
        return ["–", "no", "–", "–"]
    hours = {"value": option.hours.value * 3600 / machine.count, "unit": "s"}
    return [
        {"value": option.memory.value, "unit": "bytes"}, option.fits(machine), three_digits(option.rate.value), hours,
    ]  # fmt: skip


def _candidates() -> Iterator[tuple[dict[str, object], ModelShape]]:
    here = set()
    for ref in all_refs():
        try:
            facts = read_facts(ref.weights) if ref.source.kind == "gguf" else None
            if ref.kind != "model" or (facts and (facts.embeds or facts.decision)):
                continue
            shape = shape_of_file(ref.weights, ref.name).shape
        except (SettleError, OSError):
            continue  # a damaged model, or one that is no decoder
        here.add(ref.name)
        size = facts.bytes if facts else sum(file.stat().st_size for file in ref.weights.glob("*.safetensors"))
        chats = facts is None or bool(facts.template and not facts.completes)
        about = {"name": ref.name, "license": ref.source.license, "bytes": size, "is_here": True, "chats": chats}
        yield about, shape
    for name, entry in catalogue().items():
        if name not in here and not entry.embeds and (known := find_known(name)):
            chats = "base model" not in entry.about
            about = {"name": name, "license": entry.license, "bytes": entry.num_bytes, "is_here": False, "chats": chats}
            yield about, known.shape
