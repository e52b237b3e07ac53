"""`settle plan tune` without a model: every model that can be tuned, and what that takes on a machine."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.base.files import JsonObject
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


@dataclass(frozen=True)
class Tunable:
    """A model that can be tuned. num_bytes: of its download or files, where known; chats: it answers in a conversation.

    option: the finest adapter method that fits the machine, or None.
    """

    name: str
    license: str
    num_bytes: int | None
    is_here: bool
    chats: bool
    shape: ModelShape
    option: MethodOption | None = None
    fits: str = "no"


def tunable_models(settings: PlanSettings, machine: Machine) -> list[Tunable]:
    """Return the models of this machine and those that `settle pull` gets: those that are here first, by size.

    Raises UsageError.
    """
    tokens = tokens_to_learn(settings)
    found = sorted(_candidates(), key=lambda model: (not model.is_here, model.shape.parameters))
    return [_on(machine, model, settings, tokens) for model in found]


def _on(machine: Machine, model: Tunable, settings: PlanSettings, tokens: float) -> Tunable:
    for method in ADAPTERS:
        option = best_option(method, model.shape, settings, machine, tokens)
        if (fits := option.fits(machine)) != "no":
            return replace(model, option=option, fits=fits)
    return model


def list_tunable(settings: PlanSettings, events: Events) -> None:
    """List the models that can be tuned. Raises UsageError.

    In JSON `rate` is in tokens/s with its interval of 80 %.
    """
    machine = machine_or_this(settings.machine)
    models = tunable_models(settings, machine)
    title = f"tuning on {machine.label}, {tokens_to_learn(settings):,.0f} tokens"
    events.emit(Listing(title=title, columns=COLUMNS, rows=[_cells(model, machine) for model in models]))
    known = [_values(model) for model in models]
    events.emit(ResultReady(result={"machine": machine.label, "room": room(machine), "models": known}))


def _values(model: Tunable) -> JsonObject:
    rate = model.option and model.option.rate
    return {
        "name": model.name, "license": model.license, "bytes": model.num_bytes, "is_here": model.is_here,
        "chats": model.chats, "parameters": model.shape.parameters, "fits": model.fits,
        "memory": model.option.memory.value if model.option else None,
        "rate": [rate.value, rate.low, rate.high] if rate else None,
    }  # fmt: skip


def _cells(model: Tunable, machine: Machine) -> list[object]:
    cells: list[object] = [
        model.name, "yes" if model.is_here else f"settle pull {model.name}",
        {"value": model.shape.parameters, "unit": "count"}, model.license or "not stated",
    ]  # fmt: skip
    if (option := model.option) is None:
        return [*cells, "–", "no", "–", "–"]
    hours = {"value": option.hours.value * 3600 / machine.count, "unit": "s"}
    return [
        *cells, {"value": option.memory.value, "unit": "bytes"}, model.fits, three_digits(option.rate.value), hours,
    ]  # fmt: skip


def _candidates() -> Iterator[Tunable]:
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
        yield Tunable(ref.name, ref.source.license, size, True, chats, shape)
    for name, entry in catalogue().items():
        if name not in here and not entry.embeds and (known := find_known(name)):
            chats = "base model" not in entry.about
            yield Tunable(name, entry.license, entry.num_bytes, False, chats, known.shape)
