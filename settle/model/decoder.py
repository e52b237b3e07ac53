"""The one decoder that every family builds, from its options.

Letters: N tokens, D hidden width, V vocabulary, S segments.
"""

import math

import torch
from torch import Tensor, nn

from settle.model.layers import DecoderLayer, Embedding
from settle.model.linear import Cast
from settle.model.norm import RMSNorm
from settle.model.options import DecoderOptions, LayerOptions
from settle.model.packing import Packing, RotationTable

# Standard deviations at initialisation; chosen, not yet compared with others in bench/recipe.py.
_EMBEDDING_STD = 0.5
_HEAD_STD = 0.02
_BRANCH_SHRINK = 0.1


class _Body(nn.Module):
    """Input table, layers and final norm, named as in Hugging Face."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        last = options.layers[-1]
        self.embed_tokens = Embedding(options.vocab_size, last.width)
        self.layers = nn.ModuleList(DecoderLayer(layer) for layer in options.layers)
        self.norm = RMSNorm(last.width, last.eps, last.norm_offset)


class Decoder(nn.Module):
    """A causal language model on packed tokens.

    `compute_dtype` is the type of its matrix products and may be set at any time; parameters stay fp32.
    """

    compute_dtype: torch.dtype = torch.float32

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.options = options
        self.model = _Body(options)
        if not options.tied:
            self.lm_head = Embedding(options.vocab_size, options.layers[-1].width)
        self._head_cast = Cast(lambda w: w.detach())
        self._tables: dict[tuple[object, ...], RotationTable] = {}

    @torch.no_grad()
    def initialise(self, random: torch.Generator) -> None:
        """Draw every weight from `random` (a CPU generator), in the order of `named_parameters`."""
        for name, weight in self.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0 - self.options.layers[0].norm_offset)
            elif weight.ndim == 1:
                weight.zero_()
            elif "embed_tokens" in name and not self.options.tied:
                weight.normal_(0.0, _EMBEDDING_STD, generator=random)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.normal_(0.0, _HEAD_STD, generator=random)
            else:
                std = 1 / math.sqrt(weight.shape[1])
                shrink = _BRANCH_SHRINK if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight.normal_(0.0, std * shrink, generator=random)

    def forward(self, inputs: Tensor, cu_seqlens: Tensor) -> Tensor:
        """inputs (N,) token ids, cu_seqlens (S+1,) bounds of the segments → (N, D) after the final norm."""
        packing = Packing(cu_seqlens)
        x = self.model.embed_tokens(inputs, self.compute_dtype)
        if self.options.embedding_scale is not None:
            x = x * torch.tensor(self.options.embedding_scale, dtype=x.dtype)
        for layer in self.model.layers:
            x = layer(x, packing, self._table(layer.options, inputs.device))
        out: Tensor = self.model.norm(x)
        return out

    @property
    def head(self) -> nn.Parameter:
        """The output table (V, D); the input table itself when they are tied."""
        return self.model.embed_tokens.weight if self.options.tied else self.lm_head.weight

    def head_cast(self) -> Tensor:
        """`head` in the compute type, without gradient."""
        return self._head_cast(self.compute_dtype, self.head)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) → (N, V) in fp32 (fp64 stays fp64); soft-capped where the family does."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(wide) @ self.head.to(wide).T
        cap = self.options.logit_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _table(self, o: LayerOptions, device: torch.device) -> RotationTable:
        """Rotations are computed in fp32, or in fp64 when the model is; layers that turn alike share a table."""
        dtype = torch.promote_types(self.compute_dtype, torch.float32)
        key = (o.head_dim, o.heads, o.kv_heads, o.rope, device, dtype, o.query_scale)
        if key not in self._tables:
            self._tables[key] = RotationTable(*key)
        return self._tables[key]
