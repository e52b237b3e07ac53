"""Sides of an A/B that are measured by something that is open meanwhile, and the items that they measure."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from settle.doctor.trial import Item, Side


class Closable(Protocol):
    """Something that is open until it is closed."""

    def close(self) -> None: ...


R = TypeVar("R", bound=Closable)
T = TypeVar("T")


def typed(item: Item, kind: Callable[..., T]) -> T:
    """Return an item of a trial as the kind of thing that it was made from. Raises TypeError for another item."""
    values: Any = item
    if not isinstance(values, Mapping):
        raise TypeError(f"{item!r} is not what this side measures")
    return kind(**values)


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
