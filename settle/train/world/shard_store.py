"""Checkpoints of a model that ranks share out: each writes its rows, beside the training where nobody waits for them.

Format: `settle/train/checkpoint.py`. Rank 0 gives the name, once every rank has its files on the disk.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from settle.base.errors import FULL_DISK, CheckpointError, RunError
from settle.base.event_log import Events
from settle.base.events import CheckpointSaved, Say
from settle.train import checkpoint as checkpoints
from settle.train.checkpoint import Checkpoint, Manifest
from settle.train.checkpoint_store import LocalStore
from settle.train.world import World


class ShardStore(LocalStore):
    """Safetensors in a folder that every rank sees and writes its rows to. It reads what a `LocalStore` wrote."""

    def __init__(self, folder: Path, every: int, events: Events, world: World) -> None:
        super().__init__(folder, every, events, world)
        self._writing: _Writing | None = None

    def save(self, checkpoint: Checkpoint, stopping: Callable[[], bool], wait: bool) -> bool:
        if not self.flush():
            wait = True  # the one before found the disk full
        if not wait:
            self._begin(checkpoint)
            self._writing = _Writing(self._write, _copied(checkpoint) if self.world.shards.copy == 0 else checkpoint)
            return True
        has_warned = False
        while need := self._begun(checkpoint):
            until_room = partial(checkpoints.wait_for_room, self.folder, need, self.events, stopping, has_warned)
            if not self.world.lead(until_room):
                return False
            has_warned = True
        if has_warned:
            self.events.emit(Say(text="there is room again: the run continues"))
        self.events.emit(CheckpointSaved(step=checkpoint.step))
        return True

    def flush(self) -> bool:
        writing, self._writing = self._writing, None
        if writing is None:
            return True
        if writing.result():
            return False
        self.events.emit(CheckpointSaved(step=writing.step))
        return True

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        self.flush()
        return super().newest(at_most)

    def drop_after(self, step: int) -> None:
        self.flush()
        super().drop_after(step)

    def _begin(self, checkpoint: Checkpoint) -> None:
        self.world.lead(partial(checkpoints.begin, self.folder, checkpoint.step))

    def _begun(self, checkpoint: Checkpoint) -> int:
        self._begin(checkpoint)
        return self._write(checkpoint)

    def _write(self, checkpoint: Checkpoint) -> int:
        """Write it on all ranks: 0, or how many bytes it needs where a disk is full. Raises CheckpointError."""
        own: Manifest = {}
        shards = self.world.shards
        need = checkpoint.num_bytes if shards.copy == 0 else 0

        def write() -> list[object]:
            try:
                if shards.copy == 0:
                    own.update(checkpoints.write(self.folder, checkpoint, shards.rank))
            except OSError as e:
                return [e.errno, e.strerror, need]
            return [0, "", need, own]

        made = self.world.each(write)
        bad = next((entry for entry in made if entry[0]), None)
        if bad is None:
            files: Manifest = {}
            for *_, theirs in made:
                assert isinstance(theirs, dict), "JSON keeps the type"
                files |= theirs
            bad = self.world.each(lambda: self._finish(checkpoint, files))[0]
        if bad[0] and self.world.rank == 0:
            checkpoints.recover(self.folder)  # what was written of it takes room
        if bad[0] in FULL_DISK:
            return max(1, sum(int(str(entry[2])) for entry in made))
        if bad[0]:
            raise CheckpointError(
                f"cannot write a checkpoint to {self.folder}: {bad[1]}", "check the disk and its permissions"
            )
        return 0

    def _finish(self, checkpoint: Checkpoint, files: Manifest) -> list[object]:
        """Rank 0 gives it its name. An error's number and words."""
        if self.world.rank == 0:
            try:
                checkpoints.finish(self.folder, checkpoint, files, self.every)
            except OSError as e:
                return [e.errno, e.strerror]
        return [0, ""]

    def _newest(self, at_most: int | None) -> Checkpoint | None:
        checkpoints.recover(self.folder)
        every, shards = None if at_most is None else self.every, self.world.shards
        return checkpoints.load_newest(self.folder, self.events, at_most, every, shards.rank, shards.size)

    def _load(self, step: int) -> Checkpoint:
        return checkpoints.load(self.folder, step, self.world.shards.rank, self.world.shards.size)


class _Writing:
    """A checkpoint that is being written in a thread of its own."""

    def __init__(self, write: Callable[[Checkpoint], int], checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        self._outcome: int | CheckpointError | RunError = 0

        def work() -> None:
            try:
                self._outcome = write(checkpoint)
            except (CheckpointError, RunError) as e:
                self._outcome = e
            except RuntimeError as e:  # of the store in which the ranks leave word
                self._outcome = RunError(f"the ranks lost each other while they saved step {checkpoint.step:,}: {e}")

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def result(self) -> int:
        """Bytes that were missing, once it is over. Raises CheckpointError, RunError."""
        self._thread.join()
        if not isinstance(self._outcome, int):
            raise self._outcome
        return self._outcome


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    """With tensors of its own, which the training does not change. The best weights are nobody else's already."""
    return replace(checkpoint, model=_clones(checkpoint.model), optimizer=_clones(checkpoint.optimizer))


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
