"""BERT on torch, which embeds many passages at once several times faster than llama.cpp.

Architecture: Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
Legend: B texts, L tokens of the longest of them, W width, H heads.
"""

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from settle.base.errors import FormatError
from settle.formats import Weights
from settle.formats.gguf import pooling
from settle.formats.gguf.metadata import number, whole
from settle.machine import accelerator, use_torch_threads

BATCH_TOKENS = 1 << 12  # padding included: the activations stay in a processor's cache
_PROBE = (256, 384, 1536)  # a matrix product of the size that small models have
_PROBES = 5
_QKV = ("attn_q", "attn_k", "attn_v")
_IN_LAYER = ("attn_output", "attn_output_norm", "ffn_up", "ffn_down", "layer_output_norm")


def _names(layers: int) -> Iterator[str]:
    yield from ("token_embd.weight", "position_embd.weight", "token_types.weight")
    stems = itertools.chain(
        ("token_embd_norm",), (f"blk.{layer}.{name}" for layer in range(layers) for name in (*_QKV, *_IN_LAYER))
    )
    for stem in stems:
        yield from (f"{stem}.weight", f"{stem}.bias")


class BertEncoder:
    """The encoder of a checked GGUF file, its weights in the type that this machine multiplies fastest."""

    def __init__(self, file: Weights) -> None:
        meta = file.metadata
        self._layers = whole(meta, "bert.block_count")
        self._heads = whole(meta, "bert.attention.head_count")
        self._epsilon = number(meta, "bert.attention.layer_norm_epsilon")
        self._takes_first = pooling(meta) == "cls"
        missing = next((name for name in _names(self._layers) if name not in file.tensors), None)
        if missing:
            raise FormatError(f"the embedder's file has no {missing}", "it is not a whole model")
        use_torch_threads()
        self._device, dtype = fastest()
        self._w = {
            name: torch.tensor(tensor.load(), dtype=dtype, device=self._device) for name, tensor in file.tensors.items()
        }
        for layer in range(self._layers):  # one product is faster than three
            for kind in ("weight", "bias"):
                parts = [self._w.pop(f"blk.{layer}.{name}.{kind}") for name in _QKV]
                self._w[f"blk.{layer}.attn_qkv.{kind}"] = torch.cat(parts)

    def embed(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return texts, given as ids with the tokens around them, as float32 (len(ids), W), each of length 1."""
        out: np.ndarray = np.empty((len(ids), self._w["token_embd_norm.weight"].numel()), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # texts of a length need no padding
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= BATCH_TOKENS:
                end += 1
            some = order[start:end]
            out[some] = self._forward([ids[i] for i in some]).cpu().numpy()
            start = end
        return out

    @torch.inference_mode()
    def _forward(self, ids: list[Sequence[int]]) -> Tensor:
        """Return vectors (B, W) in fp32."""
        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=self._device)
        lengths = torch.tensor([len(row) for row in ids], device=self._device)
        is_token = torch.arange(longest, device=self._device) < lengths[:, None]
        mask = None if len(ids[0]) == longest else is_token[:, None, None]  # the first is the shortest
        w = self._w
        x = w["token_embd.weight"][padded] + w["position_embd.weight"][:longest] + w["token_types.weight"][0]
        x = self._norm(x, "token_embd_norm")
        for layer in range(self._layers):
            x = self._layer(x, mask, f"blk.{layer}.")
        x = x.float()
        pooled = x[:, 0] if self._takes_first else (x * is_token[..., None]).sum(1) / lengths[:, None]
        return F.normalize(pooled, dim=-1)

    def _layer(self, x: Tensor, mask: Tensor | None, at: str) -> Tensor:
        """Compute one layer. x: (B, L, W); mask: (B, 1, 1, L), true where there is a token."""
        q, k, v = self._linear(x, f"{at}attn_qkv").view(*x.shape[:2], 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self._norm(x + self._linear(mixed, f"{at}attn_output"), f"{at}attn_output_norm")
        wide = F.gelu(self._linear(x, f"{at}ffn_up"))
        return self._norm(x + self._linear(wide, f"{at}ffn_down"), f"{at}layer_output_norm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._w[f"{name}.weight"], self._w[f"{name}.bias"], self._epsilon)


def fastest() -> tuple[str, torch.dtype]:
    """Return the accelerator and the dtype it computes in.

    On a CPU, bfloat16 where a measurement right now shows that it multiplies faster than float32.
    """
    device = accelerator()
    if device.kind != "cpu":
        return device.kind, getattr(torch, device.dtypes[-1 if device.kind == "cuda" else 0])
    rows, inner, columns = _PROBE
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
        rounds = []
        for _ in range(_PROBES):
            began = time.perf_counter()
            F.linear(x, w)
            rounds.append(time.perf_counter() - began)
        took[dtype] = min(rounds)
    return "cpu", min(took, key=lambda dtype: took[dtype])
