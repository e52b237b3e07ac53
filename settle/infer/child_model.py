"""A model in a child process of its own: what everything that starts one has in common."""

from typing import Generic, Self, TypeVar

from settle.base.errors import ResourceError
from settle.infer.child_process import ChildProcess
from settle.library.facts import Metadata, bytes_per_token, longest_context
from settle.machine import memory

MEMORY_OVERHEAD = 1.15  # memory of a child ÷ weights and context: buffers for one batch
LONGEST_UNASKED = 1 << 17  # tokens: a longer context must be asked for, since a file may claim any


def needed_bytes(weights: int, context: int) -> int:
    """Memory that a child needs. weights, context: bytes of its files, and of keys and values in all its slots."""
    return int(MEMORY_OVERHEAD * (weights + context))


def fitting_context(name: str, metadata: Metadata, asked: int | None, slots: int, beyond: bool = False) -> int:
    """Return the tokens of context for each slot.

    Never more than the model knows, unless `beyond` that was asked for, nor than memory holds, whatever the file says.
    Raises ResourceError when what was asked for does not fit.
    """
    longest, per_token = longest_context(name, metadata), bytes_per_token(metadata) * slots
    longest = max(longest, asked or 0) if beyond else longest
    fits = memory().available // 2 // max(per_token, 1)  # half is left for everything else
    if asked is not None and min(asked, longest) > fits:
        raise ResourceError(
            f"a context of {min(asked, longest):,} tokens takes {min(asked, longest) * per_token / 1e9:.1f} GB, "
            f"and {memory().available / 1e9:.1f} GB are free",
            f"ask for {fits:,} at most",
        )
    return max(1, min(asked or LONGEST_UNASKED, longest, fits))


C = TypeVar("C", bound=ChildProcess)


class ChildModel(Generic[C]):
    """A model whose child process it starts and ends. Use it as a context manager."""

    _child: C

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the child and wait until it has loaded the model. Raises EngineError."""
        self._child.start()

    def close(self) -> None:
        """End the child. Calling it twice is harmless."""
        self._child.close()

    def alive(self) -> bool:
        return self._child.alive()

    @property
    def pid(self) -> int | None:
        return self._child.pid
