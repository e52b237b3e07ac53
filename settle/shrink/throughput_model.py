"""How fast llama.cpp writes with a file of some size: a time for every byte that a token reads, and one for the rest.

The two-parameter law of decoding (memory traffic, and work that does not depend on the weights' type). Files of one
model differ only in the bytes, so two measurements predict all others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from settle.formats import Weights
from settle.formats.gguf.types import ggml_type

BANDWIDTH_SHARE = 0.85  # share of a token's time that is memory traffic, when only one file was measured


@dataclass(frozen=True)
class ThroughputModel:
    """per_byte, fixed: seconds."""

    per_byte: float
    fixed: float

    @classmethod
    def fit(cls, measured: Sequence[tuple[int, float]]) -> "ThroughputModel":
        """measured: (bytes that a token reads, tokens a second) of one file or more, of different sizes."""
        points = [(read, 1 / speed) for read, speed in measured]
        if len(points) > 1:
            mean_read = sum(read for read, _ in points) / len(points)
            mean_time = sum(time for _, time in points) / len(points)
            spread = sum((read - mean_read) ** 2 for read, _ in points)
            slope = sum((read - mean_read) * (time - mean_time) for read, time in points) / spread if spread else 0.0
            fixed = mean_time - slope * mean_read
            if slope > 0 and fixed >= 0:
                return cls(slope, fixed)
        read, time = points[0]
        return cls(BANDWIDTH_SHARE * time / read, (1 - BANDWIDTH_SHARE) * time)

    def tokens_per_second(self, read: int) -> float:
        """With a file of which a token reads so many bytes."""
        return 1 / (self.fixed + self.per_byte * read)

    def most_bytes(self, tokens_per_second: float) -> int:
        """That a token may read at that speed; 0 when no file is so fast."""
        return max(0, int((1 / tokens_per_second - self.fixed) / self.per_byte))


def bytes_read(file: Weights, kinds: Mapping[str, str]) -> int:
    """Bytes of weights that one token reads: all, but for the table of tokens where the head is another one, and the
    experts that it does not go to. kinds: tensor name → type; those not named stay as they are."""
    architecture = file.metadata.get("general.architecture")
    experts, used = (file.metadata.get(f"{architecture}.expert_{key}") for key in ("count", "used_count"))
    share = used / experts if isinstance(used, int) and isinstance(experts, int) and used and experts else 1.0
    total = 0.0
    for name, tensor in file.tensors.items():
        if name == "token_embd.weight" and "output.weight" in file.tensors:
            continue
        kind = kinds.get(name, tensor.dtype)
        size = tensor.num_bytes if kind == tensor.dtype else ggml_type(kind).num_bytes(tensor.shape)
        total += size * (share if "_exps." in name else 1)
    return round(total)
