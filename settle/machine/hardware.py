"""hardware.toml: devices as data, each row with its source and date, checked against what can be built at all."""

import datetime
import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from settle.base.errors import DataError
from settle.base.files.dated_file import dated_file

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
    """Where a row is from, and when that was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(min_length=1)
    date: datetime.date


class _Fabric(BaseModel):
    """node: devices that share the fast link. network_gbs: of one device to other nodes, one way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: int = Field(gt=0)
    network_gbs: float = Field(gt=0)


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


def read_hardware(path: Path) -> Hardware:
    """Another table of devices, checked row by row. Raises DataError with the row that is wrong, OSError."""
    try:
        table = Hardware.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as e:
        raise DataError(f"{path.name} is no table of devices: {str(e).splitlines()[0]}", "fix that row") from None
    if table.date > datetime.date.today():
        raise DataError(f"{path.name} is dated {table.date}, which is in the future", "check the file, or the clock")
    return table


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
