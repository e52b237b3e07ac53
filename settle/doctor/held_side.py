"""A side of an A/B that is measured by something that is open meanwhile."""

from abc import abstractmethod
from typing import Generic, Protocol, TypeVar

from settle.doctor.trial import Side


class Closable(Protocol):
    """Something that is open until it is closed."""

    def close(self) -> None: ...


R = TypeVar("R", bound=Closable)


class HeldSide(Side, Generic[R]):
    """A side that holds one resource while it is open, such as a model in llama.cpp."""

    _held: R | None = None

    @abstractmethod
    def make(self) -> R:
        """Open the resource. Raises SettleError."""

    @property
    def held(self) -> R:
        """The resource, open from here on."""
        if self._held is None:
            self._held = self.make()
        return self._held

    def open(self) -> None:
        _ = self.held

    def close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()
