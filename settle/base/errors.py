"""Every error that a user can meet.

SettleError
├── UsageError       wrong arguments or settings (exit code 2)
├── DataError        the given data cannot be used
├── FormatError      a file of weights is not what it says
├── RunError         a run folder, or two programs on one of them
│   └── CheckpointError
├── ResourceError    not enough memory, disk or time
├── ProofError       the recipe failed its proof before the first step
├── GateError        the exported file does not behave like the model
└── EngineError      llama.cpp's child process
"""

import contextlib
import errno
import re
from collections.abc import Iterator

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class SettleError(Exception):
    """A mistake that the user can fix: `what` went wrong and the `fix`. Shown without a traceback."""

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} — {fix}" if fix else what)

    def _render_traceback_(self) -> list[str]:
        """For a notebook: the lines that it shows instead of a traceback."""
        return [f"{type(self).__name__}: {self.what}", *([f"Fix: {self.fix}"] if self.fix else [])]


class UsageError(SettleError):
    """Wrong arguments or settings."""

    exit_code = 2


class DataError(SettleError):
    """The given data cannot be used."""


class FormatError(SettleError):
    """A file of weights is not what it says it is."""


class RunError(SettleError):
    """A run folder is missing, damaged, or in use by another process."""


class CheckpointError(RunError):
    """No checkpoint of a run can be believed."""


class ResourceError(SettleError):
    """Not enough memory, disk space or time."""


class ProofError(SettleError):
    """The recipe failed a check before its first step."""


class GateError(SettleError):
    """The exported file does not behave like the trained model."""


class EngineError(SettleError):
    """The inference engine's child process failed."""


def cannot_write(place: object, error: OSError, then: str = "") -> ResourceError:
    """Return the error of a file or folder that could not be written. then: what to do after, or instead."""
    return ResourceError(f"cannot write to {place}: {error.strerror or error}", _make_room(" or permission", then))


def disk_is_full(place: object, then: str = "") -> ResourceError:
    """Return the error of a full disk, where a library does not say it by an OSError. then: as in `cannot_write`."""
    return ResourceError(f"the disk is full: {place}", _make_room("", then))


def no_room(what: str, needed: float, free: float, place: object, then: str = "") -> ResourceError:
    """Return the error of what takes more bytes than are free. then: as in `cannot_write`."""
    scale, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
    sizes = f"{needed / scale:,.1f} {unit} are needed and {free / scale:,.1f} {unit} are free in {place}"
    return ResourceError(f"no room for {what}: {sizes}", _make_room("", then))


def _make_room(also: str, then: str) -> str:
    return f"make room{also} there" + (f", {then}" if then else "")


# what code raises that meets a value it was not made for
_MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, re.error)


@contextlib.contextmanager
def malformed_is_format_error(file: str) -> Iterator[None]:
    """Turn whatever code trips over in a third-party file, which may hold anything, into a FormatError."""
    try:
        yield
    except RunError as e:
        raise FormatError(e.what, "get the file again") from None
    except OSError as e:
        raise FormatError(
            f"{file} cannot be read: {e.strerror or e}", "check its permissions, or get it again"
        ) from None
    except _MALFORMED as e:
        raise FormatError(f"{file} is malformed: {type(e).__name__}: {str(e)[:200]}", "get it again") from e
