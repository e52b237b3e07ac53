"""What types really cost: the model with rounded weights against itself, on a text, in torch.

llama.cpp rounds what flows between the layers too; that is its own, whatever the types, and is measured on the finished
file. Here only the weights are rounded, so that small differences can be seen.

Letters: N tokens, V vocabulary, D width.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from settle.formats import Weights
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.shrink.activations.importance import packed
from settle.shrink.session import batches
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.sensitivity import rounded

_KEPT = 1 << 28  # log-probabilities of the model itself that are held, in half precision
_CHUNK = 1 << 24  # logits that are held at once
_BATCH = 512  # tokens


class FakeQuantized:
    """The model of one GGUF file with its tensors in types that change.

    model: with trainable weights, those of the file; it is changed. windows: ids, of which as many are used as their
    predictions fit in half a gigabyte. importance: the one that the file will be quantized with.
    """

    def __init__(
        self,
        model: Decoder,
        part: Architecture,
        file: Weights,
        importance: Importance | None,
        windows: Sequence[np.ndarray],
    ) -> None:
        self.model, self.part, self.file, self.importance = model, part, file, importance
        most = max(len(windows[0]), _KEPT // part.vocab_size)
        ends = np.cumsum([len(w) for w in windows])
        self.windows = list(windows[: max(1, int(np.searchsorted(ends, most, side="right")))])
        self.num_tokens = int(sum(map(len, self.windows)))
        self._parameters = part.gguf_members()
        self._now: dict[str, str] = {}
        self._own = [logprobs.half() for logprobs in self._logprobs()]

    def divergence(self, kinds: Mapping[str, str]) -> np.ndarray:
        """Nats of KL(model itself ‖ with these types) at each token, (N,) float64. Tensors not named stay as in the
        file.
        """
        self.put(kinds)
        found = []
        for own, other in zip(self._own, self._logprobs(), strict=True):
            log_p = own.float()
            p = log_p.exp()
            # of p, rounded to half precision, and q: Σ p log(p / q) - p + q, in which the rounding is of second order
            lost = 1 - p.sum(-1, dtype=torch.float64)
            found.append((p.mul_(log_p.sub_(other)).sum(-1, dtype=torch.float64) + lost).numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def put(self, kinds: Mapping[str, str]) -> None:
        """Make the model's weights those of a file with these types."""
        for name, parameters in self._parameters.items():
            wanted = kinds.get(name, self.file.tensors[name].dtype)
            if wanted == self._now.get(name, self.file.tensors[name].dtype):
                continue
            self._now[name] = wanted
            for parameter, values in zip(parameters, self._values(name, wanted), strict=True):
                own = self.model.get_parameter(parameter)
                ours = self.part.from_gguf_tensor(parameter, torch.from_numpy(values))
                own.copy_(ours.view(own.shape))

    def _values(self, name: str, kind: str) -> Iterator[np.ndarray]:
        """The numbers of each parameter in a tensor, as they are in a type."""
        tensor = self.file.tensors[name]
        values = np.asarray(tensor.load(), np.float32)
        num = len(self._parameters[name])
        means = None if self.importance is None else self.importance.means.get(name)
        for index, matrix in enumerate(values.reshape(num, -1, values.shape[-1])):
            vector = None if means is None else means.reshape(num, -1)[index]
            yield matrix if kind == tensor.dtype else rounded(matrix, kind, vector)

    @torch.no_grad()
    def _logprobs(self) -> Iterator[Tensor]:
        """Pieces of (N, V), in order."""
        step = max(1, _CHUNK // self.part.vocab_size)
        for batch in batches(self.windows, _BATCH):
            hidden = self.model(*packed(batch))
            for rows in hidden.split(step):
                yield torch.log_softmax(self.model.logits(rows), dim=-1)
