"""A BERT encoder on numpy: the states of a few texts' tokens, without the seconds that loading torch takes.

Legend: B texts, L tokens of the longest of them, T of all, W width, H heads.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from settle.formats import Weights
from settle.formats.gguf.metadata import number, whole

_LARGEST = np.float32(80)  # whose exponential is a float32
_GELU_SCALE, _GELU_CUBIC = np.float32(2 * 0.7978845608), np.float32(0.044715)  # tanh form, as a sigmoid


class TokenStates:
    """The encoder of a checked GGUF file of the BERT family."""

    def __init__(self, file: Weights, others: Mapping[str, np.ndarray] | None = None) -> None:
        """others: tensors that take the place of the file's of the same names."""
        meta = file.metadata
        self.layers, self._heads = whole(meta, "bert.block_count"), whole(meta, "bert.attention.head_count")
        self._epsilon = np.float32(number(meta, "bert.attention.layer_norm_epsilon"))
        own = others or {}
        self._w = {
            name: np.asarray(own[name] if name in own else tensor.load(), np.float32)
            for name, tensor in file.tensors.items()
        }
        for name, weight in self._w.items():
            if name.startswith("blk.") and weight.ndim == 2:
                self._w[name] = weight.T
        self._mean: np.ndarray = self._w["token_embd.weight"].mean(0)

    def words(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings of some tokens, centred, float32 (len(ids), W)."""
        centred: np.ndarray = self._w["token_embd.weight"][list(ids)] - self._mean
        return centred

    def read(self, ids: Sequence[Sequence[int]], layers: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read texts as ids, with the tokens around them → states behind the first `layers`, or all.

        Returns float32 (B, L, W), and which places hold a token (B, L).
        """
        longest = max(map(len, ids))
        padded = np.zeros((len(ids), longest), np.int64)
        mask = np.zeros((len(ids), longest), bool)
        for row, text in enumerate(ids):
            padded[row, : len(text)], mask[row, : len(text)] = text, True
        w = self._w
        x = (
            w["token_embd.weight"][padded]
            + w["position_embd.weight"][:longest]
            + w["token_types.weight"].reshape(-1, w["token_embd.weight"].shape[1])[0]
        )
        x = self._norm(x, "token_embd_norm")
        return self.through(x, mask, range(self.layers if layers is None else layers)), mask

    def through(self, x: np.ndarray, mask: np.ndarray, layers: Iterable[int]) -> np.ndarray:
        """States (B, L, W), tokens where `mask` (B, L) → the states behind some layers, 0 where there is no token."""
        ends = np.cumsum(mask.sum(1)).tolist()
        tokens = x[mask]  # (T, W), of all texts one behind the other: padding takes no time
        for layer in layers:
            tokens = self._layer(tokens, list(zip([0, *ends], ends, strict=False)), f"blk.{layer}.")
        states: np.ndarray = np.zeros_like(x)
        states[mask] = tokens
        return states

    def _layer(self, x: np.ndarray, texts: Sequence[tuple[int, int]], at: str) -> np.ndarray:
        """x: (T, W); texts: where each of them begins and ends."""
        q, k, v = (
            self._linear(x, at + name).reshape(len(x), self._heads, -1).transpose(1, 0, 2)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        q *= np.float32(q.shape[-1] ** -0.5)
        mixed = np.empty_like(x)
        for begin, end in texts:
            scores = q[:, begin:end] @ k[:, begin:end].transpose(0, 2, 1)
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            mixed[begin:end] = (scores @ v[:, begin:end]).transpose(1, 0, 2).reshape(end - begin, -1)
        x = self._norm(x + self._linear(mixed, at + "attn_output"), at + "attn_output_norm")
        return self._norm(
            x + self._linear(gelu(self._linear(x, at + "ffn_up")), at + "ffn_down"), at + "layer_output_norm"
        )

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        out: np.ndarray = x @ self._w[f"{name}.weight"]
        out += self._w[f"{name}.bias"]
        return out

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"], self._epsilon)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: np.float32) -> np.ndarray:
    """Normalise x (…, W), each row with mean 0 and variance 1 before `weight` (W,) and `bias` (W,)."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.einsum("...i,...i->...", centred, centred)[..., None] / np.float32(x.shape[-1])
    normed: np.ndarray = centred / np.sqrt(variance + epsilon)
    normed *= weight
    normed += bias
    return normed


def gelu(x: np.ndarray) -> np.ndarray:
    """Compute x · Φ(x), by the approximation with tanh."""
    inner = x * x
    inner *= _GELU_CUBIC
    inner += np.float32(1)
    inner *= x
    inner *= -_GELU_SCALE
    np.minimum(inner, _LARGEST, out=inner)
    np.exp(inner, out=inner)
    inner += np.float32(1)
    out: np.ndarray = x / inner
    return out
