"""Where the checkpoints of a run are kept: a contract. A checkpoint without its final marker does not exist."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import CheckpointSaved
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint
from settle.train.world import World


class CheckpointStore(ABC):
    """The checkpoints of one run, by step. Every rank calls every method. No method leaves a checkpoint that is half
    written under its name."""

    @abstractmethod
    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool], wait: bool) -> bool:
        """Keep a checkpoint, and drop those that are not needed any more. On a full disk it waits for room; False: not
        saved, as `stopping` ended the wait. wait: until it is kept; otherwise `flush` does that. Raises
        CheckpointError."""

    @abstractmethod
    def flush(self) -> bool:
        """Wait for a checkpoint that is still being kept; False: the disk was full. Raises CheckpointError."""

    @abstractmethod
    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, leftovers of a killed process put in order; None when there is none at
        all. at_most: a regular one, of no later step. Raises CheckpointError when none can be believed."""

    @abstractmethod
    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""


class LocalStore(CheckpointStore):
    """Safetensors in a folder, which every rank sees and rank 0 writes. every: steps from one regular checkpoint to the
    next."""

    def __init__(self, folder: Path, every: int, events: Events, world: World) -> None:
        self.folder, self.every, self.events, self.world = folder, every, events, world

    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool], wait: bool) -> bool:
        save = checkpoints.save_or_wait
        if not self.world.lead(lambda: save(self.folder, checkpoint, self.every, self.events, stopping)):
            return False
        self.events.emit(CheckpointSaved(step=checkpoint.step))
        return True

    def flush(self) -> bool:
        return True

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        found: list[Checkpoint] = []

        def find() -> int | None:
            newest = self._newest(at_most)
            found.extend([] if newest is None else [newest])
            return None if newest is None else newest.step

        step = self.world.lead(find)
        return None if step is None else found[0] if found else self._load(step)

    def drop_after(self, step: int) -> None:
        self.world.lead(lambda: checkpoints.drop_after(self.folder, step))

    def _newest(self, at_most: int | None) -> Checkpoint | None:
        if at_most is None:
            checkpoints.recover(self.folder)
            return checkpoints.load_newest(self.folder, self.events)
        return checkpoints.load_newest(self.folder, self.events, at_most, self.every)

    def _load(self, step: int) -> Checkpoint:
        return checkpoints.load(self.folder, step)
