"""The A/B of a finding: two sides that differ in one setting alone, what they measure, and what fixes the cause."""

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from settle.doctor.findings import Fix
from settle.experiment.two_arms import FEWEST_ITEMS, LEAST_RATIO, TwoArms
from settle.experiment.two_arms import GuardedArm as Side
from settle.experiment.two_arms import Measured as Item
from settle.infer.engine import Engine
from settle.library.reference import ModelRef

__all__ = ["FEWEST_ITEMS", "LEAST_RATIO", "EngineSide", "HeldSide", "Item", "Side", "Trial", "typed"]

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Trial(TwoArms):
    """An A/B with what fixes the cause, where the trial itself found the change that helps; else the check knows it."""

    fix: Fix | None = None


def typed(item: Item, kind: Callable[..., T]) -> T:
    """Return an item of a trial as the kind of thing that it was made from. Raises TypeError for another item."""
    values: Any = item
    if not isinstance(values, Mapping):
        raise TypeError(f"{item!r} is not what this side measures")
    return kind(**values)


class HeldSide(Side, Generic[R]):
    """A side that holds one resource while it is open, such as a model in llama.cpp."""

    _opened: tuple[AbstractContextManager[R], R] | None = None

    @abstractmethod
    def make(self) -> AbstractContextManager[R]:
        """Return the resource, which is opened here and closed with the side. Raises SettleError."""

    @property
    def held(self) -> R:
        """The resource, open from here on."""
        if self._opened is None:
            manager = self.make()
            self._opened = manager, manager.__enter__()
        return self._opened[1]

    def load(self) -> None:
        _ = self.held

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].__exit__(None, None, None)


class EngineSide(HeldSide[Engine]):
    """A side that measures a model in llama.cpp. path: of a file in place of the model's own; others: see `Engine`."""

    def __init__(
        self,
        name: str,
        model: ModelRef,
        context: int,
        path: Path | None = None,
        threads: int | None = None,
        engine: Path | None = None,
    ) -> None:
        weights = path or model.weights
        self.name, self.num_bytes = name, weights.stat().st_size
        self._made = functools.partial(Engine, weights, context, threads, adapter=model.adapter, engine=engine)

    def make(self) -> Engine:
        return self._made()
