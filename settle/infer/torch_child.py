"""settle's own model as a reader of whole distributions. Run by `token_reader.py` as a script, never imported by it.

It answers the lines of `scorer_child.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from settle.base.errors import SettleError
from settle.infer.scorer_child import LOGITS_BYTES, Unreadable, serve
from settle.model.decoder import Decoder
from settle.model.kv_cache import Growing
from settle.model.load_adapter import adapted, adapter_of_gguf
from settle.model.pretrained import Pretrained

ROOM = 256  # tokens that a window may grow by before it is read again


class TorchModel:
    """A folder in Hugging Face's layout, or a GGUF file.

    settings: path, adapter (a LoRA in a GGUF file, or None), threads.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        try:
            self._model = _load(Path(settings["path"]), settings["adapter"])
        except SettleError as e:
            raise Unreadable(f"error: {e.what}") from None
        self.num_vocab = self._model.options.vocab_size
        self._ids: list[int] = []
        self._growing: Growing | None = None
        self._room = 0

    def reopen(self, changes: Mapping[str, Any]) -> None:
        raise Unreadable("its context has no other settings")

    @torch.no_grad()
    def logits(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """Yield logits, as `ReadableModel.logits`."""
        bounds = torch.tensor([0, len(ids) - 1], dtype=torch.int32)
        hidden = self._model(torch.tensor(ids[:-1]), bounds)[start:]
        step = max(1, LOGITS_BYTES // (4 * self.num_vocab))
        for first in range(0, len(hidden), step):
            yield self._model.logits(hidden[first : first + step].float()).float().numpy()

    @torch.no_grad()
    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return logits, as `ReadableModel.next_logits`."""
        if self._growing is not None and self._room and list(ids[:-1]) == self._ids:
            self._growing.read()
            hidden = self._model(torch.tensor([ids[-1]]), self._growing)
            self._room -= 1
        else:
            self._growing, self._room = Growing(torch.tensor([0, len(ids)], dtype=torch.int32), ROOM), ROOM
            hidden = self._model(torch.tensor(ids), self._growing)[-1:]
        self._ids = list(ids)
        row: np.ndarray = self._model.logits(hidden.float()).float().numpy()[0]
        return row


def _load(path: Path, adapter: str | None) -> Decoder:
    base = Pretrained.open(path)
    if adapter:
        return adapted(base, adapter_of_gguf(Path(adapter), base.part))
    return base.load(quantize="as-is").eval()


if __name__ == "__main__":
    serve(TorchModel)
