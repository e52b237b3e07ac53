"""Where the checkpoints of a run are kept: a contract. A checkpoint without its final marker does not exist."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from settle.base.event_log import Events
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint


class CheckpointStore(ABC):
    """The checkpoints of one run, by step. No method leaves one that is half written under its name."""

    @abstractmethod
    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool]) -> bool:
        """Keep a checkpoint, and drop those that are not needed any more. On a full disk it waits for room; False: not
        saved, as `stopping` ended the wait. Raises CheckpointError."""

    @abstractmethod
    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, leftovers of a killed process put in order; None when there is none at
        all. at_most: a regular one, of no later step. Raises CheckpointError when none can be believed."""

    @abstractmethod
    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises CheckpointError when it cannot be believed."""

    @abstractmethod
    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""


class LocalStore(CheckpointStore):
    """Safetensors in a folder, which every rank sees. every: steps from one regular checkpoint to the next."""

    def __init__(self, folder: Path, every: int, events: Events) -> None:
        self.folder, self.every, self.events = folder, every, events

    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool]) -> bool:
        return checkpoints.save_or_wait(self.folder, checkpoint, self.every, self.events, stopping)

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        if at_most is None:
            checkpoints.recover(self.folder)
            return checkpoints.load_newest(self.folder, self.events)
        return checkpoints.load_newest(self.folder, self.events, at_most, self.every)

    def load(self, step: int) -> Checkpoint:
        return checkpoints.load(self.folder, step)

    def drop_after(self, step: int) -> None:
        checkpoints.drop_after(self.folder, step)
