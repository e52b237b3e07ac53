"""Amounts as people read them: 1.2 GB, 3 min 20 s, 0.4 Wh, 12.3 M."""

import math
import re
import time

CURRENCY = re.compile("[A-Z]{3}")  # its code, such as EUR

# What a number is, by the name it has in forecasts, results and plans.
UNITS = {
    "time": "s",
    "seconds": "s",
    "memory": "bytes",
    "peak_memory": "bytes",
    "device_memory": "bytes",
    "energy": "J",
    "loss": "nats",
    "cost": "money",
    "bits_per_byte": "bits per byte",
    "tokens": "tokens",
}


def amount(value: object, unit: str = "") -> str:
    """Format `value` in `unit` (s, bytes, J, nats, tokens, count, a currency …); what is no number, as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if not math.isfinite(value):
        return "unknown"
    if unit == "s":
        return duration(value)
    if unit == "bytes":
        return _scaled(value, 1000.0, ("B", "kB", "MB", "GB", "TB"))
    if unit == "J":
        return _scaled(value / 3600.0, 1000.0, ("Wh", "kWh", "MWh", "GWh", "TWh"))
    if unit == "money" or CURRENCY.fullmatch(unit):
        return f"{money(value)} {unit.removeprefix('money')}".rstrip()
    if unit == "count":
        return count(value)
    if unit in ("tokens", "parameters", "rows", "documents", "h"):
        return f"{count(value)} {unit}"
    return f"{plain(value)} {unit}".rstrip()


def number(value: object) -> float | None:
    """`value` where it is a finite number, as of a file that anyone may have written."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def plain(value: float) -> str:
    """Four significant digits, thousands apart, no needless zeros; whole numbers in full."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(value: float) -> str:
    """1,234 in full, more in thousands, millions, billions."""
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    return _scaled(value / 1000, 1000.0, ("k", "M", "B", "T"))


def money(value: float) -> str:
    """Return two decimals, or two significant digits where that would be nothing; never a power of ten.

    Large sums have three digits.
    """
    if abs(value) >= 999_500:
        return _scaled(value / 1e6, 1000.0, ("M", "B", "T"))
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 1:
        return f"{value:,.2f}"
    return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"


def gigabytes(size: float, decimals: int = 1) -> str:
    """Format bytes as gigabytes: 1.5 GB."""
    return f"{size / 1e9:,.{decimals}f} GB"


def megabytes(size: float, decimals: int = 0) -> str:
    """Format bytes as megabytes: 1,234 MB."""
    return f"{size / 1e6:,.{decimals}f} MB"


def disk_size(size: float) -> str:
    """Format bytes on a disk as megabytes, or as gigabytes where there are so many."""
    return gigabytes(size) if size >= 1e9 else megabytes(size, 1)


def device_gigabytes(size: float) -> str:
    """Format the memory of a device, which vendors count in powers of two: 80 GB."""
    return f"{size / 2**30:,.0f} GB"


def billions(value: float) -> str:
    """Format a large count: 1.5 billion, 0.3 billion."""
    return f"{value / 1e9:.3g} billion"


def millions(value: float) -> str:
    """Format a large count: 4 M, 0.5 M."""
    return f"{value / 1e6:.3g} M"


def count_in_words(value: float) -> str:
    """Format a count: 1.5 billion, 20 million, 3 thousand, 17."""
    for scale, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return str(value)


def three_digits(value: float) -> str:
    """Format with three digits, or in whole numbers with thousands apart; never as a power of ten where large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def duration(seconds: float) -> str:
    """8.2 s, 3 min 20 s, 1 h 04 min, 2 d 3 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 30 * 86400:
        return f"{round(whole / 86400):,} d"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < step * 0.9995:
            return f"{value:.3g} {unit}"
        value /= step
    return f"{value:,.3g} {units[-1]}"


def when(at: float | None) -> str:
    """Return the time of epoch seconds as people write it here: "17:20" today, "27 Nov 17:20", "27 Nov 2025"."""
    if at is None:
        return ""
    then, now = time.localtime(at), time.localtime()
    clock, date = time.strftime("%H:%M", then), f"{then.tm_mday} {time.strftime('%b', then)}"
    if then.tm_year != now.tm_year:
        return f"{date} {then.tm_year}"
    return clock if then.tm_yday == now.tm_yday else f"{date} {clock}"
