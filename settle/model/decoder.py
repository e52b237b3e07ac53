"""The one decoder that every family builds, from its options.

Letters: N tokens, D hidden width, V vocabulary, S segments.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from settle.base.errors import FormatError
from settle.model.config import DecoderOptions, LayerOptions
from settle.model.layers.decoder_layer import DecoderLayer, Embedding
from settle.model.layers.frozen_weights import Frozen, FrozenDense, Owner
from settle.model.layers.linear import Linear
from settle.model.layers.linear_adapter import LinearAdapter
from settle.model.layers.norm import RMSNorm
from settle.model.layers.packed_sequences import Packing, RotationTable

# Standard deviations at initialisation; chosen, not yet compared with others in bench/recipe.py.
_EMBEDDING_STD = 0.5
_HEAD_STD = 0.02
_BRANCH_SHRINK = 0.1
_WIDENED = 1 << 24  # numbers of the output table that are in fp32 at once


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

    `compute_dtype` is the type of its matrix products and may be set at any time; parameters stay fp32. `recompute`:
    of every how many layers one is computed again on the way back instead of kept (arXiv:1604.06174); 0: none, 1: all.
    """

    compute_dtype: torch.dtype = torch.float32
    recompute: int = 0

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.options = options
        self.model = _Body(options)
        if not options.tied:
            self.lm_head = Embedding(options.vocab_size, options.layers[-1].width)
        self.lr_scales: dict[str, float] = {}  # last part of a parameter's name → factor of its learning rate
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

    def forward(self, inputs: Tensor, cu_seqlens: Tensor | Packing) -> Tensor:
        """inputs (N,) token ids, cu_seqlens (S+1,) bounds of the segments → (N, D) after the final norm."""
        packing = cu_seqlens if isinstance(cu_seqlens, Packing) else Packing(cu_seqlens)
        x = self.embed(inputs)
        for i, layer in enumerate(self.layers):
            table = self._table(layer.options, inputs.device)
            if self.recompute and i % self.recompute == 0 and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, table, use_reentrant=False)
            else:
                x = layer(x, packing, table)
        out: Tensor = self.model.norm(x)
        return out

    @property
    def layers(self) -> list[DecoderLayer]:
        """Its layers, from the first to the last."""
        return [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]

    def embed(self, inputs: Tensor) -> Tensor:
        """inputs (N,) token ids → (N, D) before the first layer."""
        x: Tensor = self.model.embed_tokens(inputs, self.compute_dtype)
        if self.options.embedding_scale is not None:
            x = x * torch.tensor(self.options.embedding_scale, dtype=x.dtype)
        return x

    def layer(self, number: int, x: Tensor, packing: Packing) -> Tensor:
        """x (N, D) before a layer → (N, D) behind it."""
        out: Tensor = self.model.layers[number](x, packing, self.table(number, x.device))
        return out

    def table(self, number: int, device: torch.device) -> RotationTable:
        """The rotations of a layer."""
        return self._table(self.layers[number].options, device)

    @property
    def head(self) -> Tensor:
        """The output table (V, D), the input table itself when they are tied: the parameter, or what is frozen."""
        table = self._head_table
        return table.weight if table.frozen is None else table.cast(self.compute_dtype)

    def head_operands(self) -> tuple[Tensor, Tensor]:
        """The output table in the compute type without gradient, and its owner: the parameter, or the same tensor.

        A quantized table is turned into numbers once, and only for as long as the result is held.
        """
        table = self._head_table
        cast = table.cast(self.compute_dtype)
        return cast, cast if table.frozen is not None else table.weight

    @property
    def _head_table(self) -> Embedding:
        return self.model.embed_tokens if self.options.tied else self.lm_head

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.norm.weight.device

    # --- what is trained, and what is not ---

    def trainable(self) -> dict[str, nn.Parameter]:
        """What an optimizer steps and a checkpoint holds, by name, in the model's order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_trainable(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the numbers of `trainable()`. Raises KeyError when a name is missing or not one of them."""
        own = self.trainable()
        if own.keys() != weights.keys():
            raise KeyError(min(own.keys() ^ weights.keys()))
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def weights(self) -> dict[str, nn.Parameter | Frozen]:
        """Every tensor of the base model by name, trained or frozen; adapters are not among them."""
        found: dict[str, nn.Parameter | Frozen] = {}
        for path, module in self.named_modules():
            if isinstance(module, LinearAdapter):
                continue
            if isinstance(module, Owner) and module.frozen is not None:
                found[f"{path}.weight"] = module.frozen
            found |= {f"{path}.{leaf}": p for leaf, p in module.named_parameters(recurse=False)}
        return found

    def put(self, name: str, value: Tensor | Frozen) -> None:
        """Set one tensor of the base model, in Hugging Face's layout: a plain tensor is trained, in fp32.

        Norms and biases that are frozen are kept in fp32 too. Raises FormatError when the shape is another.
        """
        path, _, leaf = name.rpartition(".")
        module = self.get_submodule(path)
        if isinstance(module, Owner) and leaf == "weight":
            module.put(value)
            return
        tensor = value.dense(torch.float32) if isinstance(value, Frozen) else value
        own = getattr(module, leaf)
        if tensor.numel() != own.numel():
            raise FormatError(f"{name} has the shape {tuple(tensor.shape)} where {tuple(own.shape)} belongs", "")
        parameter = nn.Parameter(tensor.detach().float().view(own.shape), not isinstance(value, Frozen))
        setattr(module, leaf, parameter)

    def freeze(self) -> None:
        """Make every tensor of the base model a frozen one, dense in the compute type unless it already is frozen."""
        for name, weight in self.weights().items():
            if isinstance(weight, nn.Parameter):
                if weight.ndim == 2:
                    self.put(name, FrozenDense(weight.detach().to(self.compute_dtype)))
                else:
                    weight.requires_grad_(False)

    def linears(self) -> dict[str, Linear]:
        """Every linear of the layers by name; the head is none of them."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Linear)}

    def lr_scale(self, name: str) -> float:
        """What the learning rate of a trainable parameter is multiplied by."""
        return self.lr_scales.get(name.rpartition(".")[2], 1.0)

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The base model alone, as long as this lasts."""
        adapters = [m for m in self.modules() if isinstance(m, LinearAdapter)]
        for adapter in adapters:
            adapter.active = False
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.active = True

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) → (N, V) in fp32 (fp64 stays fp64); soft-capped where the family does.

        A table in less than fp32 is widened piece by piece.
        """
        wide = torch.promote_types(hidden.dtype, torch.float32)
        table, hidden = self.head, hidden.to(wide)
        pieces = (table,) if table.dtype == wide else table.split(_WIDENED // table.shape[1])
        products = [hidden @ piece.to(wide).T for piece in pieces]
        logits = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        cap = self.options.logit_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _table(self, o: LayerOptions, device: torch.device) -> RotationTable:
        """Rotations are computed in fp32, or in fp64 when the model is; layers that turn alike share a table."""
        dtype = torch.promote_types(self.compute_dtype, torch.float32)
        key = (o.head_dim, o.heads, o.kv_heads, o.rope, device, dtype, o.query_scale)
        if key not in self._tables:
            self._tables[key] = RotationTable(*key)
        return self._tables[key]
