"""Machines as data: "mac m4 pro 24gb", "2x rtx 3090", "8x h100 sxm", this computer, or numbers by hand.

hardware.toml holds devices, each row with its source and date, checked against what can be built at all.
"""

import datetime
import difflib
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from settle.base.errors import UsageError
from settle.base.files.dated_file import dated_file
from settle.base.words.amounts import device_gigabytes
from settle.machine.cores import accelerator, apple_gpu_limit
from settle.machine.measurement_cache import others_are_busy
from settle.machine.memory import memory
from settle.machine.power import power
from settle.machine.speed import bandwidth, ceiling
from settle.machine.threads import num_threads

# --- the table of devices ---

GIB = 2**30
MATRIX_DTYPES = ("bfloat16", "float16", "float32")  # what half-precision products run at, the fastest first
# A device reads its whole memory in 3 ms (fastest stacked memory) to 8 s (a server full of DIMMs), and does 1 to 6,000
# operations for a byte that it reads: a row outside has a wrong unit or a wrong column.
SWEEP_SECONDS = (0.003, 8.0)
OPERATIONS_PER_BYTE = (1.0, 6000.0)
MOST_BANDWIDTH, MOST_FLOPS = 40e12, 100e15  # of one device, per second


class DeviceRow(BaseModel):
    """One kind of device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    generation: str
    memory_gb: tuple[float, ...] = Field(min_length=1)
    bandwidth_gbs: float = Field(gt=0)
    tflops: dict[str, float] = Field(min_length=1)
    watts: float | None = Field(None, gt=0)
    link_gbs: float | None = Field(None, gt=0)
    cores: tuple[int, ...] = ()
    unified: bool = False
    source: str

    @model_validator(mode="after")
    def _can_be_built(self) -> "DeviceRow":
        problem = roofline_problem(
            [gb * GIB for gb in self.memory_gb],
            self.bandwidth_gbs * 1e9,
            {dtype: rate * 1e12 for dtype, rate in self.tflops.items()},
        )
        if problem:
            raise ValueError(f"{self.name}: {problem}")
        return self


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(min_length=1)
    date: datetime.date


class _Fabric(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    node: int = Field(gt=0)  # devices that share the fast link
    network_gbs: float = Field(gt=0)  # of one device to other nodes, one way


class Hardware(BaseModel):
    """hardware.toml, checked. Raises pydantic's ValidationError for a row that cannot be, or has no source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    devices: tuple[DeviceRow, ...]
    aliases: dict[str, str] = {}
    fabric: dict[str, _Fabric]
    sources: dict[str, _Source]

    @model_validator(mode="after")
    def _has_sources(self) -> "Hardware":
        for row in self.devices:
            if row.source not in self.sources:
                raise ValueError(f"{row.name}: source {row.source!r} is not listed")
        lost = set(self.aliases.values()) - {row.name for row in self.devices}
        if lost:
            raise ValueError(f"an alias names {min(lost)!r}, which is no device")
        late = [name for name, source in self.sources.items() if source.date > self.date]
        if late:
            raise ValueError(f"source {late[0]!r} is dated after the file")
        return self


@functools.cache
def hardware() -> Hardware:
    """Return the user's update where it is newer, otherwise the table that comes with settle."""
    path = dated_file("hardware", Path(__file__).with_name("hardware.toml"))
    return Hardware.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def roofline_problem(memory: Sequence[float], bandwidth: float, flops: Mapping[str, float]) -> str | None:
    """Why no device is like this, or None. memory: bytes, of each size sold. bandwidth, flops: per second."""
    sweeps = [size / bandwidth for size in memory]
    if not SWEEP_SECONDS[0] <= min(sweeps) <= max(sweeps) <= SWEEP_SECONDS[1]:
        return f"reading its whole memory would take {max(sweeps):.3g} s"
    most = max(flops.values())
    if not OPERATIONS_PER_BYTE[0] <= most / bandwidth <= OPERATIONS_PER_BYTE[1]:
        return f"{most / bandwidth:.3g} operations for a byte read"
    if bandwidth > MOST_BANDWIDTH or most > MOST_FLOPS or min(flops.values()) <= 0:
        return "a rate beyond what is built"
    half = max(flops.get(dtype, 0.0) for dtype in MATRIX_DTYPES[:2])
    if half and not flops.get("float32", 0.0) <= half <= flops.get("float8", half):
        return "half precision slower than float32, or float8 slower than half"
    return None


# --- a machine in words ---

# Words that people put beside a device's name and that tell no device from another.
_NOISE = frozenset(
    """nvidia geforce amd radeon intel apple mac macbook mini studio air book imac gpu gpus the a an with and of ram
    vram unified memory graphics card pc desktop workstation server core instinct tesla quadro generation silicon chip
    google aws cluster node nodes integrated""".split()  # noqa: SIM905
)
_SAME = {"laptop": "mobile", "max-q": "mobile", "sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "bw": "blackwell"}
_BY_HAND = {"memory": "gb", "bandwidth": "gb/s", "tflops": "", "watts": "w", "link": "gb/s"}
_EXAMPLES = 'write for example "rtx 4090", "2x rtx 3090" or "memory=24gb bandwidth=936gb/s tflops=71 watts=350"'


@dataclass(frozen=True)
class Machine:
    """`count` devices of one kind. Figures are of one device, rates per second."""

    name: str
    kind: str  # torch's name of the device type (cuda, mps, cpu), or rocm, xpu, tpu, hpu, neuron, npu
    count: int
    memory: int  # bytes
    bandwidth: float  # bytes of its memory that it reads
    flops: Mapping[str, float]  # dense operations, by dtype as torch names it, with float8, float4 and int8
    watts: float | None  # design power, None where nobody says
    interconnect: float | None  # bytes to its neighbours in one node, one way; None is PCIe
    source: str
    date: datetime.date  # of the source
    generation: str = ""
    network: float | None = None  # bytes between nodes
    node: int = 1  # devices that share the interconnect
    cores: int | None = None  # of Apple's GPU
    is_unified: bool = False  # one memory for the device and the processor
    notes: tuple[str, ...] = ()  # what was assumed because it was not said
    measured: bool = False  # it is this computer
    free: int | None = field(default=None, compare=False)  # bytes of `memory` that are not taken now; None: not known

    @property
    def matrix_flops(self) -> float:
        """Operations per second of half-precision matrix products with float32 sums, of one device."""
        return max(self.flops.get(dtype, 0.0) for dtype in MATRIX_DTYPES)

    @property
    def label(self) -> str:
        """The machine as one would write it: "8x NVIDIA H100 SXM 80 GB"."""
        size = f"{device_gigabytes(self.memory)}"
        return (f"{self.count}x " if self.count > 1 else "") + (
            self.name if size in self.name else f"{self.name} {size}"
        )


def described(text: str, table: Hardware | None = None) -> Machine:
    """Return the machine that the words name, such as "2x rtx 3090", "m3 max 40 core 64gb", "16384x h100".

    Or numbers by hand, alone or after a name: "memory=24gb bandwidth=936gb/s tflops=71 watts=350". Raises UsageError:
    unknown (with the nearest names), or sizes that contradict.
    """
    table = table or hardware()
    words = text.strip().lower().replace("×", "x")
    words, by_hand = _numbers_by_hand(words)
    words, count = _count(words)
    words, memory = _take(words, r"(?<![\w.])(\d+(?:\.\d+)?)\s*(?:gb|gib|g)\b")
    words, cores = _take(words, r"\(?\b(\d+)\s*-?\s*(?:c|cores?|gpu cores?)\b\)?")
    key = _key(words)
    if not key:
        if "memory" in by_hand and "bandwidth" in by_hand and "tflops" in by_hand:
            today = datetime.date.today()
            unnamed = Machine("by hand", "cuda", count, GIB, 1e9, {}, None, None, "by hand", today, "by hand")
            return _overridden(unnamed, by_hand)
        raise UsageError(f"{text!r} names no device", _EXAMPLES)
    key = {_key(alias): _key(name) for alias, name in table.aliases.items()}.get(key, key)
    rows = [row for row in table.devices if _key(row.name) == key] or _unique_ending(key, table)
    if not rows:
        raise UsageError(f"unknown device {words.strip()!r}", _nearest(key, table))
    machine = _chosen(rows, count, None if "memory" in by_hand else memory, cores, table)
    return _overridden(machine, by_hand) if by_hand else machine


def _chosen(rows: Sequence[DeviceRow], count: int, size: float | None, cores: float | None, table: Hardware) -> Machine:
    """Return the row, the size and the cores meant; what was not said is taken and noted."""
    notes = []
    name = rows[0].name
    if cores is not None:
        known = sorted({c for row in rows for c in row.cores})
        rows = [row for row in rows if cores in row.cores] or []
        if not rows:
            fix = f"it has {_either(known)}" if known else "leave it out"
            raise UsageError(f"no {name} has {cores:g} GPU cores", fix)
    sizes = sorted({gb for row in rows for gb in row.memory_gb})
    if size is not None and size not in sizes:
        fix = f"it has {_either(sizes)} GB; for another size write memory={size:g}gb after the name"
        raise UsageError(f"no {name} has {size:g} GB of memory", fix)
    row = next(r for r in rows if size is None or size in r.memory_gb)
    if size is None:
        size = max(sizes) if row.link_gbs else row.memory_gb[0]
        row = next(r for r in rows if size in r.memory_gb)
        if len(sizes) > 1:
            notes.append(f"{size:g} GB of memory assumed; it is sold with {_either(sizes)} GB")
    gpu_cores = int(cores) if cores else max(row.cores, default=0)
    if len(row.cores) > 1 and not cores:
        notes.append(f"{gpu_cores} GPU cores assumed; it is sold with {_either(row.cores)}")
    share = gpu_cores / max(row.cores) if row.cores else 1.0
    source, fabric = table.sources[row.source], table.fabric.get(row.generation) if row.link_gbs else None
    return Machine(
        name=row.name,
        kind=row.kind,
        count=count,
        memory=int(size * GIB),
        bandwidth=row.bandwidth_gbs * 1e9,
        flops={dtype: rate * 1e12 * share for dtype, rate in row.tflops.items()},
        watts=row.watts,
        interconnect=row.link_gbs * 1e9 if row.link_gbs else None,
        source=source.text,
        date=source.date,
        generation=row.generation,
        network=fabric.network_gbs * 1e9 if fabric else None,
        node=fabric.node if fabric else max(1, min(count, 8)),
        cores=gpu_cores or None,
        is_unified=row.unified,
        notes=tuple(notes),
    )


def _numbers_by_hand(words: str) -> tuple[str, dict[str, float]]:
    """`name=number` pairs taken out of the words. Raises UsageError for a name that is none, or a number of zero."""
    found: dict[str, float] = {}
    for pair in re.findall(r"\S+=\S*", words):
        name, _, value = pair.partition("=")
        number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gb/s|gb|gib|w|tflops)?", value)
        if name not in _BY_HAND:
            raise UsageError(f"{name!r} is no number of a machine", f"known: {', '.join(_BY_HAND)}")
        if not number or float(number[1]) <= 0:
            raise UsageError(f"{pair!r} is no positive number", f"write for example {name}=24{_BY_HAND[name]}")
        found[name] = float(number[1])
    return re.sub(r"\S+=\S*", " ", words), found


def _overridden(machine: Machine, numbers: Mapping[str, float]) -> Machine:
    """Return the machine with these numbers in the place of its own. Raises UsageError where they contradict."""
    link = numbers["link"] * 1e9 if "link" in numbers else machine.interconnect
    changed = replace(
        machine,
        memory=int(numbers["memory"] * GIB) if "memory" in numbers else machine.memory,
        bandwidth=numbers["bandwidth"] * 1e9 if "bandwidth" in numbers else machine.bandwidth,
        flops={"float32": numbers["tflops"] * 1e12} if "tflops" in numbers else machine.flops,
        watts=numbers.get("watts", machine.watts),
        interconnect=link,
        notes=(*machine.notes, "by hand: " + ", ".join(f"{name} {value:g}" for name, value in numbers.items())),
    )
    problem = roofline_problem([changed.memory], changed.bandwidth, changed.flops)
    if problem:
        raise UsageError(f"no device is like that: {problem}", "check the units: memory in GB, bandwidth in GB/s")
    return changed


def _count(words: str) -> tuple[str, int]:
    """Read a number of machines: 8x h100, 8 x h100, h100 x8, h100 * 8. Raises UsageError for none at all."""
    for pattern in (r"^\s*(\d+)\s*[x*]\s+", r"^\s*(\d+)x(?=[a-z])", r"\s[x*]\s*(\d+)\s*$"):
        found = re.search(pattern, words)
        if found:
            if not 0 < int(found[1]) <= 1_000_000:
                raise UsageError(f"{found[1]} devices", "ask for one or more, a million at most")
            return words[: found.start()] + " " + words[found.end() :], int(found[1])
    return words, 1


def _take(words: str, pattern: str) -> tuple[str, float | None]:
    found = re.search(pattern, words)
    if not found:
        return words, None
    return words[: found.start()] + " " + words[found.end() :], float(found[1])


@functools.cache
def _key(words: str) -> str:
    """Return what two spellings of one name share."""
    words = re.sub(r"\bmac(book)?\s+(pro|air)\b(?=.*\bm\d)", " ", words.lower())
    tokens = [_SAME.get(token, token) for token in re.findall(r"max-q|[a-z0-9+]+", words)]
    return "".join(token for token in tokens if token not in _NOISE)


def _unique_ending(key: str, table: Hardware) -> list[DeviceRow]:
    """Rows of the one name that differs only by what people leave out: "3090", "h100", "pro 6000"."""
    for left_out in (r"^(rtx|gtx|rx|arc|titan)", r"(sxm|pcie)$", r"^rtx|blackwell.*$|ada$"):
        rows = [row for row in table.devices if re.sub(left_out, "", _key(row.name)) == key]
        names = dict.fromkeys(row.name for row in rows)
        if rows:
            best = next((name for name in names if name.endswith("SXM")), rows[0].name)
            return [row for row in rows if row.name == best]
    return []


def _nearest(key: str, table: Hardware) -> str:
    names = {_key(row.name): row.name for row in table.devices}
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    if not near:
        return f"{len(names)} devices are known, or give its numbers: memory=24gb bandwidth=936gb/s tflops=71 watts=350"
    return f"nearest: {', '.join(names[k] for k in near)}; or give its numbers: memory=…gb bandwidth=…gb/s tflops=…"


def _either(numbers: Sequence[float]) -> str:
    texts = [f"{number:g}" for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def this_machine(seconds: float = 0.5) -> Machine:
    """Measure this computer: what it holds, copies and multiplies. Remembered; half a second the first time."""
    device = accelerator()
    held = memory()
    busy = others_are_busy()
    rates = {
        dtype: ceiling([(512, 2048, 2048), (512, 2048, 5504)], dtype, device, seconds / 2) for dtype in device.dtypes
    }
    if device.kind == "mps":
        limit = apple_gpu_limit()
    else:
        limit = device.memory_total or held.total
    return Machine(
        name=device.name,
        kind=device.kind,
        count=1,
        memory=limit,
        bandwidth=bandwidth(device, seconds / 2),
        flops=rates,
        watts=power(num_threads(None), None, device.kind).watts,
        interconnect=None,
        source="this machine, measured" + (" while other programs kept it busy" if busy else ""),
        date=datetime.date.today(),
        generation="here",
        is_unified=device.kind in ("mps", "cpu"),
        measured=True,
        free=device.memory_free if device.memory_free is not None else held.available,
    )


def machine_or_this(text: str | None) -> Machine:
    """Return the machine that the words name, or this one."""
    return described(text) if text else this_machine()
