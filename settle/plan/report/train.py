"""`settle plan train`: a training run on described devices, from a laptop to a cluster of sixteen thousand."""

import datetime
from dataclasses import asdict

from settle.base.amounts import count, count_text
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.words.amounts import billions, device_gigabytes, millions
from settle.machine.described_machine import Machine, machine_or_this
from settle.plan.cluster.throughput import Shape, shape_of_size, shape_with_experts
from settle.plan.cluster.whole_run import RunForecast, forecast_run, published_runs
from settle.plan.cost import Cost, Life, cost, exact, life
from settle.plan.report import PlanSettings
from settle.plan.report.figures import Rows, draw_run, energy_rows, forecast_table, values

HOURS = 3600.0
NOTE = (
    "A forecast from published runs, whose hours hold failures, evaluation and passes that nobody reports. "
    "A clean run is faster."
)


def plan_train(settings: PlanSettings, events: Events) -> None:
    """Report what training takes. Raises UsageError, and ResourceError where the run fits in no layout."""
    shape = requested_shape(settings)
    if settings.tokens is None:
        fix = f"--tokens {count_text(20 * shape.parameters)}, say"
        raise UsageError("how many tokens to train on is not said", fix)
    machine = machine_or_this(settings.machine)
    run = forecast_run(
        shape,
        count(settings.tokens),
        machine,
        batch_tokens=count(settings.batch_tokens) if settings.batch_tokens else None,
        sequence=settings.sequence,
        precision=settings.precision,
        per_device_day=settings.failures / 1000 if settings.failures else None,
        by_hand=settings.by_hand,
    )
    money = cost(run.device_hours, machine, per_kwh=settings.price_per_kwh, per_hour=settings.price_per_hour)
    rows = forecast_rows(run, money, machine)
    events.emit(_layouts(run))
    title = f"training {billions(shape.parameters)} weights on {machine.label}"
    events.emit(forecast_table(title, rows, NOTE))
    served = count(settings.served_tokens) if settings.served_tokens else 0
    whole_life = life(shape.active_parameters, run.tokens, served) if served else None
    for sentence in (*_sentences(run, settings), *_of_life(whole_life, shape)):
        events.emit(Say(text=sentence))
    if settings.picture:
        draw_run(run, settings.picture)
        events.emit(Say(text=f"the picture is in {settings.picture}"))
    result = {"machine": machine.label, "parameters": shape.parameters, "tokens": run.tokens, "forecast": values(rows)}
    of_run = {"layout": run.layouts[0].layout.label, "chance_by_date": _chance(run, settings)}
    events.emit(ResultReady(result={**result, "life": asdict(whole_life) if whole_life else None, **of_run}))


def requested_shape(settings: PlanSettings) -> Shape:
    """Return the shape of --params and --active. Raises UsageError."""
    if settings.params is None:
        raise UsageError("the size of the model is not said", "--params 1.5b, or --params 671b --active 37b")
    if settings.active is None:
        return shape_of_size(count(settings.params))
    return shape_with_experts(count(settings.params), count(settings.active))


def forecast_rows(run: RunForecast, money: Cost, machine: Machine) -> Rows:
    best = run.layouts[0]
    fail = run.failures
    published = f"{len(published_runs().runs)} published runs, {published_runs().date}"
    seconds = run.days.scaled(24 * HOURS)
    rows: Rows = {
        "speed of a device, steady": (best.rate.tokens, "tokens/s", f"the layout; MFU {best.rate.mfu:.0%}"),
        "memory of a device": (exact(best.memory.total), "bytes", f"of {device_gigabytes(machine.memory)}"),
        "device-hours": (run.device_hours, "h", published),
        "time": (seconds, "s", published),
        **energy_rows(money, machine),
    }
    if "rent" in rows:
        rows["bill with storage and network"] = (money.bill, "USD", "rent is 65 % of a bill")
    if machine.count > 1:
        rows["failures"] = (fail.failures, "", "rates of four clusters")
        rows["share of the time that is work"] = (fail.share.scaled(100), "%", "Daly (2006)")
    return rows


def _layouts(run: RunForecast) -> Listing:
    rows = [
        [
            c.layout.label,
            round(c.rate.tokens.value),
            f"{c.rate.mfu:.0%}",
            {"value": c.memory.total, "unit": "bytes"},
            f"{c.layout.rows} x {c.layout.micro_batches}",
            ", ".join(f"{name} {part:.0%}" for name, part in c.rate.parts.items() if part >= 0.05),
        ]
        for c in run.layouts
    ]
    columns = ["layout", "tokens/s a device", "MFU", "memory", "rows x micro-batches", "the time goes into"]
    return Listing(title="fastest layouts that fit", columns=columns, rows=rows)


def _sentences(run: RunForecast, settings: PlanSettings) -> list[str]:
    fail = run.failures
    sentences = [f"a batch of {millions(run.batch_tokens)} tokens, {run.tokens / run.batch_tokens:,.0f} steps"]
    if run.devices > 1:
        sentences.append(
            f"save every {fail.checkpoint_every / 60:.3g} minutes: {fail.checkpoint_bytes / 1e12:.3g} TB, "
            f"a pause of {fail.pause:.0f} s; a failure is expected every {_span(fail.between)}"
        )
    chance = _chance(run, settings)
    if chance is not None:
        sentences.append(f"chance to have finished by {settings.by}: {chance:.0%}, when started today")
    return sentences


def _of_life(whole: Life | None, shape: Shape) -> list[str]:
    if whole is None:
        return []
    low, high, _ = whole.serving
    lines = [f"serving is {low:.0%} to {high:.0%} of what the model costs in its life"]
    if whole.saving > 0.02 and not shape.experts:
        lines.append(
            f"{billions(whole.parameters)} weights trained on {whole.tokens / 1e12:.3g} trillion tokens reach "
            f"the same loss (Hoffmann's law) for {whole.saving:.0%} less in all"
        )
    return lines


def _chance(run: RunForecast, settings: PlanSettings) -> float | None:
    if settings.by is None:
        return None
    return run.chance_within((settings.by - datetime.date.today()).days)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.3g} days"
