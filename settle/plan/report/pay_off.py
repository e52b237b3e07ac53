"""`settle plan pay-off`: from when a model on a machine of one's own is cheaper than an API."""

from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.library.prices import ApiPrice, prices
from settle.machine.described_machine import Machine, machine_or_this
from settle.plan.cost import UNKNOWN_WATTS, YEARS, PayOff, Workload, exact, pay_off
from settle.plan.fit.model_shapes import named_shape
from settle.plan.fit.speed import decode_rate, prefill_rate
from settle.plan.memory_model import fit
from settle.plan.report import PlanSettings
from settle.plan.report.figures import draw_pay_off, forecast_table, values

USUAL_TYPE = "q4_k_m"  # of a model whose file is not here
MEASURED = 1.05  # the factor by which a speed that was measured once may be off
READS_FASTER = 10.0  # tokens of a prompt read in the time of one written, where only the latter is known


def plan_pay_off(model: str | None, settings: PlanSettings, events: Events) -> None:
    """Report when a machine pays off against an API. Raises UsageError without an API or a speed."""
    machine = machine_or_this(settings.machine)
    api = requested_price(settings)
    decode, prefill, source = _speeds(model, settings, machine)
    load = Workload(settings.requests_per_day, settings.input_tokens, settings.output_tokens, settings.cached)
    own = settings.price_per_kwh
    table = prices()
    plan = pay_off(
        load,
        api,
        prefill,
        decode,
        machine.watts or UNKNOWN_WATTS,
        exact(own) if own is not None else table.electricity.interval,
        purchase=settings.purchase,
        per_hour=settings.price_per_hour or 0.0,
    )
    electricity = "asked" if own is not None else table.electricity.whence
    api_source = "asked" if settings.api_price else table.api.whence
    day = f"{load.requests:,.0f} requests a day of {load.input_tokens:,.0f} + {load.output_tokens:,.0f} tokens"
    rows = {
        f"{api.id}, a day": (exact(plan.api), "USD", api_source),
        "here, a day": (plan.here, "USD", electricity),
        "speed": (decode, "tokens/s", source),
        "energy of an output token": (plan.energy, "J/token", f"{machine.watts or UNKNOWN_WATTS:.0f} W"),
    }
    if plan.days and settings.purchase:
        rows["paid off"] = (plan.days.scaled(86400), "s", day)
    events.emit(forecast_table(f"{model or 'the model'} on {machine.label} against {api.id}", rows, day))
    for sentence in _sentences(plan, settings, machine, api):
        events.emit(Say(text=sentence))
    if settings.picture:
        draw_pay_off(plan, settings.purchase, settings.picture, YEARS)
        events.emit(Say(text=f"the picture is in {settings.picture}"))
    result = {"machine": machine.label, "against": api.id, "forecast": values(rows), "chance": plan.chance}
    events.emit(ResultReady(result=result | {"requests_to_break_even": plan.requests, "busy_hours": plan.busy}))


def requested_price(settings: PlanSettings) -> ApiPrice:
    """Return the price of --against or --api-price. Raises UsageError."""
    if settings.api_price is None:
        if settings.against is None:
            raise UsageError("no API is named to compare with", "--against gpt-5-mini, or --api-price INPUT,OUTPUT")
        return prices().api_price(settings.against)
    try:
        read, written = (float(part) for part in settings.api_price.split(","))
    except ValueError:
        read = written = -1.0
    if min(read, written) < 0:
        raise UsageError(f"{settings.api_price!r} is no price", "write dollars a million tokens: --api-price 3,15")
    return ApiPrice(id=settings.against or "the API", vendor="asked", input=read, output=written)


def _speeds(model: str | None, settings: PlanSettings, machine: Machine) -> tuple[Interval, Interval, str]:
    """Tokens per second written and read, and where they are from."""
    if settings.speed is None:
        if model is None:
            raise UsageError("neither a model nor a speed is given", "name the model, or --speed 35 as measured")
        named = named_shape(model)
        type_name = named.type or USUAL_TYPE
        tokens, texts = round(settings.input_tokens + settings.output_tokens), settings.texts
        if not fit(named.shape, type_name, machine, tokens, texts).fits:
            at_once = f" with {texts} texts at once" if texts > 1 else ""
            what = f"{named.name} as {type_name} does not fit in {machine.label}{at_once}"
            raise ResourceError(what, "`settle models fit` shows what does")
        written = decode_rate(named.shape, type_name, machine, tokens, texts)
        read = prefill_rate(named.shape, type_name, machine, prompt=max(1, round(settings.input_tokens)))
        decode, prefill = (Interval(rate.value, rate.low, rate.high, FORECAST_LEVEL) for rate in (written, read))
        return decode.scaled(texts), prefill, f"forecast as {type_name}: {written.why}"
    decode = _around(settings.speed)
    prefill = _around(settings.prompt_speed or READS_FASTER * settings.speed)
    return decode, prefill, "asked"


def _around(value: float) -> Interval:
    return Interval(value, value / MEASURED, value * MEASURED, FORECAST_LEVEL)


def _sentences(plan: PayOff, settings: PlanSettings, machine: Machine, api: ApiPrice) -> list[str]:
    if plan.busy > 24:
        return [f"{machine.label} would work {plan.busy:.0f} hours a day: too slow for so many requests"]
    lines = [f"{machine.label} works {plan.busy:.2g} hours a day"]
    if plan.days is None:
        lines.append(f"it never pays off: a day costs more here than at {api.id}")
    elif settings.purchase:
        chance = f"{plan.chance:.0%} that it is within {YEARS:.0f} years"
        lines.append(f"the machine is paid after {plan.days.value:,.0f} days; {chance}")
    else:
        times = plan.api / max(plan.here.value, 1e-9)
        lines.append(f"a day at {api.id} costs {times:.3g} times as much; --purchase counts the machine")
    if plan.requests and settings.purchase:
        lines.append(f"it breaks even over {YEARS:.0f} years at {plan.requests:,.0f} requests a day")
    return lines
