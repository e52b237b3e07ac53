"""Rerankers and groundedness models that were pulled into the store, each in a child process, which loads torch."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from settle.base.errors import EngineError, SettleError
from settle.base.files import read_json
from settle.base.line_child import LineChild
from settle.base.python_command import module_command
from settle.base.registry import part_names
from settle.library.store import StoredModel, all_models, stamp_of
from settle.machine.threads import num_threads
from settle.model.encoder_config import Use, use_of

SECONDS, START_SECONDS = 120.0, 120.0  # that a request may take, and the start of the process


class PairModel:
    """A model that scores pairs of texts; its process starts with the first."""

    def __init__(self, name: str, path: Path, sha256: str) -> None:
        self.name, self.sha256 = name, sha256
        self._child = LineChild(
            module_command("settle.infer.pair_child", str(path), str(num_threads(None))), START_SECONDS
        )

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the logit of each pair, above 0 where the two go together. Raises EngineError."""
        if not pairs:
            return []
        answer = self._child.ask(json.dumps(pairs).encode(), SECONDS)
        found = json.loads(answer) if answer.endswith(b"\n") else {"error": "its process ended"}
        if not isinstance(found, list):
            self.close()
            raise EngineError(f"{self.name} scored nothing: {found['error']}", f"pull {self.name} again, or delete it")
        return [float(logit) for logit in found]

    def close(self) -> None:
        """End the process; the next pairs start another one."""
        self._child.close()


def pair_model(use: Use) -> PairModel | None:
    """Return the first model of the store that is for this use, or None; it stays open while its files are the same."""
    for model in all_models():
        if model.kind == "safetensors" and model.path.is_dir() and _use(model.path, stamp_of(model.path)) == use:
            return _opened(model)
    return None


@lru_cache(256)
def _use(path: Path, stamp: str) -> Use | None:
    """Return what the folder of an encoder is for; None for another model."""
    try:
        config = read_json(path / "config.json")
    except (SettleError, OSError):
        return None
    known = isinstance(config, dict) and str(config.get("model_type")).replace("-", "_") in part_names("model/encoders")
    return use_of(config) if known else None


@lru_cache(4)
def _opened(model: StoredModel) -> PairModel:
    return PairModel(model.name, model.path, model.sha256)
