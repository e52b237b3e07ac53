"""Which device does the arithmetic: a CUDA card, Apple's GPU through MPS, or the processor."""

from dataclasses import dataclass

from settle.base.errors import UsageError
from settle.machine.cores import processor_name

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")  # a device offers the first and at most one more


@dataclass(frozen=True)
class Accelerator:
    """`kind` is torch's name of the device type: cuda, mps or cpu. Memory is in bytes, None when it is shared."""

    kind: str
    name: str
    memory_total: int | None = None
    memory_free: int | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # what may be computed in; the first is always safe


def accelerator(kind: str | None = None) -> Accelerator:
    """Return the fastest device present, or the one of `kind`.

    Raises UsageError for a kind that torch cannot use here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "cuda" and not cuda or kind == "mps" and not mps or kind not in (None, "cpu", "cuda", "mps"):
        there = ", ".join(["cpu"] + ["cuda"] * cuda + ["mps"] * mps)
        raise UsageError(f"device {kind!r} is not usable here", f"choose one of: {there}")
    if cuda and kind in (None, "cuda"):
        free, total = torch.cuda.mem_get_info()
        # Cards before Ampere run bfloat16 only by emulation; float16 is their fast half.
        half = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
        return Accelerator("cuda", torch.cuda.get_device_name(), total, free, ("float32", half))
    if mps and kind in (None, "mps"):
        return Accelerator("mps", processor_name())
    return Accelerator("cpu", processor_name())


def apple_gpu_limit() -> int:
    """Bytes of the shared memory that Apple's GPU may use, as Metal says."""
    import torch

    return int(torch.mps.recommended_max_memory())
