"""What the control groups above this process allow it: CPU time and memory, version 1 and version 2.

A container of 2 CPUs on a 64-core host sees 64 cores and the host's memory; only these files show the limits.
Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 says "no limit" with a number near 2**63 rounded down to a page.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class CgroupLimits:
    """What is allowed. `cpus` is a number of CPUs, memory is in bytes; None means there is no limit."""

    cpus: float | None = None
    memory: int | None = None
    memory_used: int | None = None  # memory of the group with the tightest limit, without its reclaimable file cache


def limits(root: Path = Path("/")) -> CgroupLimits:
    """Return the tightest CPU and memory limits of this process's groups and all groups above them.

    root: where proc and sys are mounted (another root only makes sense in tests). No files, no limits.
    """
    cpus = [quota for place in _folders(root, "cpu") if (quota := _cpu_quota(*place)) is not None]
    memory: list[tuple[int, int | None]] = []
    for folder, version in _folders(root, "memory"):
        limit = _number(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if limit is not None and limit < _NO_LIMIT:
            memory.append((limit, _memory_used(folder, version)))
    tightest = min(memory, key=lambda pair: pair[0] - (pair[1] or 0), default=(None, None))
    return CgroupLimits(min(cpus, default=None), tightest[0], tightest[1])


def _folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Return the group's folder and each one above it up to the mount, with the version of its hierarchy."""
    # controller → path of this process's group; the key of version 2 is the empty string
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    paths = {controller: path for _, controllers, path in groups for controller in controllers.split(",")}
    for mount_root, mount_point, kind, options in _mounts(root):
        version = 2 if kind == "cgroup2" else 1
        if version == 1 and controller not in options:
            continue
        path = paths.get("" if version == 2 else controller)
        if path is None:
            continue
        top = root / mount_point.lstrip("/")
        # Seen from inside a container the path may start above what is mounted: then the mount is the group.
        inside = path[len(mount_root) :] if mount_root != "/" and path.startswith(mount_root) else path
        folder = top / inside.strip("/")
        if not folder.is_dir():
            folder = top
        while True:
            yield folder, version
            if folder == top:
                break
            folder = folder.parent


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Each mounted hierarchy: (root within the hierarchy, mount point, cgroup|cgroup2, controllers)."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield fields[3], fields[4], kind, options.split(",")


def _cpu_quota(folder: Path, version: int) -> float | None:
    if version == 2:
        words = _text(folder / "cpu.max").split()
        if len(words) != 2 or words[0] == "max":
            return None
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _memory_used(folder: Path, version: int) -> int | None:
    used = _number(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
    if used is None:
        return None
    reclaimable = "inactive_file" if version == 2 else "total_inactive_file"
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == reclaimable:
            return max(0, used - int(value))
    return used


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
