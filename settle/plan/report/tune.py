"""`settle plan tune`: what tuning a model takes on a machine, by every method, and the finest that fits."""

import math
from dataclasses import dataclass

from settle.base.amounts import count
from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.base.words.amounts import device_gigabytes, millions
from settle.library.model_shape import ModelShape
from settle.machine.described_machine import Machine, machine_or_this
from settle.plan.cluster.throughput import DeviceLayout, steady_rate
from settle.plan.cost import Cost, cost
from settle.plan.fit.model_shapes import NamedShape, named_shape
from settle.plan.memory_model import Sizing, Tuning, room, training_shape, tuning_sizing
from settle.plan.report import PlanSettings
from settle.plan.report.figures import Rows, draw_tuning, energy_rows, forecast_table, values

METHODS = ("full", "lora", "qlora")  # the finest first
# Of tuning's memory: bench/planning_tuning.py, half the rows lie within 5 %, nine tenths within 20 %.
MEMORY_LOG_STD = 0.09
# Beside a step's steady rate: rows of uneven length, evaluation, loading, saving. Tuning runs of one device are simpler
# than pretraining runs and lose less.
SHARE_OF_STEADY = Interval(0.85, 0.65, 1.0, FORECAST_LEVEL)
UNPACKED = 1.1  # time of a step over quantized weights (litgpt: 1.77 over 1.62 minutes)
MOST_ROWS = 8
AS_FAST = 0.95  # of the fastest rate: more rows at once that gain less than the rest are not worth their memory


@dataclass(frozen=True)
class MethodOption:
    """One method, at the largest micro-batch that fits, or at one row where none does."""

    method: str
    tuning: Tuning
    memory: Interval
    parts: Sizing
    hours: Interval  # of a device
    rate: Interval  # tokens a second of a device

    def fits(self, machine: Machine) -> str:
        """yes, barely (within the interval), or no."""
        most = room(machine) / machine.count
        return "yes" if self.memory.high <= most else "barely" if self.memory.value <= most else "no"


def plan_tune(model: str, settings: PlanSettings, events: Events) -> None:
    """Report what tuning takes. Raises UsageError, and ResourceError where the method does not fit."""
    tokens = tokens_to_learn(settings)
    named, machine = named_shape(model), machine_or_this(settings.machine)
    options = [best_option(method, named.shape, settings, machine, tokens) for method in METHODS]
    events.emit(_table(options, machine))
    chosen = _chosen(options, settings, machine, named)
    money = cost(chosen.hours, machine, per_kwh=settings.price_per_kwh, per_hour=settings.price_per_hour)
    rows = _rows(chosen, money, machine)
    title = f"{chosen.method} of {named.name} on {machine.label}, {millions(tokens)} tokens"
    events.emit(forecast_table(title, rows, f"the model's numbers: {named.source}"))
    if settings.picture:
        draw_tuning({o.method: _parts(o.parts) for o in options}, room(machine) / machine.count, settings.picture)
        events.emit(Say(text=f"the picture is in {settings.picture}"))
    if chosen.fits(machine) == "barely":
        events.emit(Say(text="it may not fit: the upper end of the memory is more than the machine has"))
    result = {
        "machine": machine.label,
        "model": named.name,
        "method": chosen.method,
        "rows_at_once": chosen.tuning.rows,
        "fits": {option.method: option.fits(machine) for option in options},
        "forecast": values(rows),
    }
    events.emit(ResultReady(result=result))


def tokens_to_learn(settings: PlanSettings) -> float:
    """Return the tokens of all rows, as often as they are seen. Raises UsageError."""
    if settings.rows is None:
        raise UsageError("how many rows to tune on is not said", "--rows 5000")
    return count(settings.rows) * settings.row_tokens * settings.epochs


def best_option(
    method: str, shape: ModelShape, settings: PlanSettings, machine: Machine, tokens: float
) -> MethodOption:
    """Return the method at the number of rows that fits, is about as fast as any, and takes the least memory."""
    made = [
        _option(method, shape, settings, machine, tokens, rows, recompute)
        for recompute in (False, True)
        for rows in (2**i for i in range(MOST_ROWS.bit_length() - 1, -1, -1))
    ]
    fitting = [option for option in made if option.fits(machine) == "yes"]
    near = [option for option in made if option.fits(machine) == "barely"]
    if not fitting:
        return near[-1] if near else made[-1]
    fastest = max(option.rate.value for option in fitting)
    return min((option for option in fitting if option.rate.value >= AS_FAST * fastest), key=lambda o: o.memory.value)


def _option(
    method: str, shape: ModelShape, settings: PlanSettings, machine: Machine, tokens: float, rows: int, recompute: bool
) -> MethodOption:
    tuning = Tuning(
        method="full" if method == "full" else "lora",
        bits=4 if method == "qlora" else 16,
        rank=settings.rank,
        rows=rows,
        sequence=settings.row_tokens,
        recompute=recompute,
        devices=machine.count,
    )
    parts = tuning_sizing(shape, tuning)
    memory = Interval.log_normal(parts.total, MEMORY_LOG_STD)
    layout = DeviceLayout(
        data=machine.count, sharded=machine.count > 1, rows=rows, sequence=settings.row_tokens, recompute=recompute
    )
    steady = steady_rate(training_shape(shape), machine, layout, fused=False, trained=float(method == "full")).tokens
    value = steady.value * SHARE_OF_STEADY.value / (UNPACKED if method == "qlora" else 1.0)
    spread = math.hypot(steady.log_std, SHARE_OF_STEADY.log_std)
    rate = Interval.log_normal(value, spread)
    hours = Interval(tokens / value / 3600, tokens / rate.high / 3600, tokens / rate.low / 3600, FORECAST_LEVEL)
    return MethodOption(method, tuning, memory, parts, hours, rate)


def _chosen(options: list[MethodOption], settings: PlanSettings, machine: Machine, named: NamedShape) -> MethodOption:
    """Return the method asked for, or the finest that fits surely, or barely; never full tuning unasked."""
    if settings.method:
        option = next(o for o in options if o.method == settings.method)
        if option.fits(machine) == "no":
            raise ResourceError(
                f"{settings.method} of {named.name} takes {option.memory.value / 1e9:.3g} GB of {machine.label}",
                _instead(options, machine),
            )
        return option
    by_fit = {option.fits(machine): option for option in reversed(options[1:])}
    if fitting := by_fit.get("yes") or by_fit.get("barely"):
        return fitting
    least = min(options, key=lambda o: o.memory.value)
    raise ResourceError(
        f"{named.name} cannot be tuned on {machine.label}: {least.method} takes {least.memory.value / 1e9:.3g} GB",
        "take a smaller model, more devices, or shorter rows (--row-tokens)",
    )


def _instead(options: list[MethodOption], machine: Machine) -> str:
    fitting = [o.method for o in options if o.fits(machine) != "no"]
    return f"--method {fitting[0]} fits" if fitting else "take a smaller model, or more devices"


def _rows(chosen: MethodOption, money: Cost, machine: Machine) -> Rows:
    wall = chosen.hours.scaled(3600 / machine.count)
    return {
        "memory of a device": (chosen.memory, "bytes", f"of {device_gigabytes(machine.memory)}; measured trainers"),
        "speed of a device": (chosen.rate, "tokens/s", "published training rates"),
        "time": (wall, "s", f"{chosen.tuning.rows} row{'s' * (chosen.tuning.rows > 1)} at once"),
        **energy_rows(money, machine),
    }


def _parts(memory: Sizing) -> dict[str, float]:
    kept = memory.weights + memory.adapters + memory.optimizer
    return {
        "weights": memory.weights,
        "adapters and optimizer": memory.adapters + memory.optimizer,
        "activations, logits or gradients": memory.tensors - kept,
        "overhead": memory.total - memory.tensors,
    }


def _table(options: list[MethodOption], machine: Machine) -> Listing:
    rows = [
        [
            option.method,
            option.fits(machine),
            option.tuning.rows,
            {"value": option.memory.value, "unit": "bytes"},
            {"value": option.parts.weights, "unit": "bytes"},
            {"value": option.parts.adapters + option.parts.optimizer + option.parts.gradients, "unit": "bytes"},
            {"value": option.parts.activations + max(option.parts.working, option.parts.logits), "unit": "bytes"},
            {"value": option.hours.value * 3600 / machine.count, "unit": "s"},
        ]
        for option in options
    ]
    columns = [
        "method", "fits", "rows at once", "memory", "weights", "what is trained", "activations and logits", "time",
    ]  # fmt: skip
    return Listing(title=f"tuning on {machine.label}", columns=columns, rows=rows)
