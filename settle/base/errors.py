"""Every error a person can meet.

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


class SettleError(Exception):
    """A mistake that a person can mend: `what` went wrong and the `fix`. Shown without a traceback."""

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} — {fix}" if fix else what)


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
