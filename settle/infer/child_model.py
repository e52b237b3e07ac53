"""A model in a child process of its own: what everything that starts one has in common."""

from typing import Generic, Self, TypeVar

from settle.infer.child_process import ChildProcess

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
        """Starts the child and waits until it has loaded the model. Raises EngineError."""
        self._child.start()

    def close(self) -> None:
        """Ends the child. Calling it twice is harmless."""
        self._child.close()

    def alive(self) -> bool:
        return self._child.alive()

    @property
    def pid(self) -> int | None:
        return self._child.pid
