"""The one decoder that every family builds, from its options.

Letters: N tokens, D hidden width, V vocabulary, S segments.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from settle.base.errors import UsageError
from settle.model.config import DecoderOptions, LayerOptions
from settle.model.layers.altup import as_loud
from settle.model.layers.attention import attend_bucket, attention_over
from settle.model.layers.decoder_layer import Embedding, FusedLayer, Projection
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.linear import RMSNorm, norm_of
from settle.model.layers.packed_sequences import Carried, Packing, RotationTable, Scoring

# Standard deviations at initialisation; chosen, not yet compared with others in bench/recipe.py.
_EMBEDDING_STD = 0.5
_HEAD_STD = 0.02
_BRANCH_SHRINK = 0.1
_WRITERS = ("o_proj.weight", "out_proj.weight", "down_proj.weight")  # to the residual stream
_WIDENED = 1 << 24  # numbers of the output table that are in fp32 at once


class _Body(nn.Module):
    """Input table, layers and final norm, named as in Hugging Face."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        last = options.layers[-1]
        self.embed_tokens = Embedding(options.vocab_size, last.width)
        self.layers = nn.ModuleList(FusedLayer(layer) for layer in options.layers)
        self.norm = norm_of(last, scale=options.logit_scale)
        if last.per_layer_input:
            wide = len(options.layers) * last.per_layer_input
            self.embed_tokens_per_layer = Embedding(options.per_layer_rows or options.vocab_size, wide)
            self.per_layer_model_projection = Projection(wide, last.width)
            self.per_layer_projection_norm = RMSNorm(last.per_layer_input, last.eps, last.norm_offset)
        if last.streams is not None:
            further = range(last.streams.number - 1)
            self.altup_projections = nn.ModuleList(Projection(last.width, last.width) for _ in further)
            self.altup_unembed_projections = nn.ModuleList(Projection(last.width, last.width) for _ in further)


class Decoder(FreezableModule):
    """A causal language model on packed tokens.

    `compute_dtype` is the type of its matrix products and may be set at any time; parameters stay fp32. `recompute`:
    one of this many layers is computed again in the backward pass instead of kept (arXiv:1604.06174); 0: none, 1: all.
    `file_name`: what Hugging Face's files call a module, from its name here.
    """

    recompute: int = 0
    file_name: Callable[[str], str] = staticmethod(str)

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.options, self.width = options, options.layers[0].width
        self.model = _Body(options)
        if not options.tied:
            self.lm_head = Embedding(options.vocab_size, options.layers[-1].width)
        self._tables: dict[tuple[object, ...], RotationTable] = {}

    @torch.no_grad()
    def initialise(self, random: torch.Generator) -> None:
        """Draw every weight from `random` (a CPU generator), in the order of `named_parameters`."""
        for name, weight in self.named_parameters():
            if name.endswith(("layer_scalar.weight", "correct_output_scale", ".D")) or (
                name.endswith(".norm.weight") and ".layers." in name
            ):
                weight.fill_(1.0)
            elif name.endswith("norm.weight"):
                weight.fill_(1.0 - self.options.layers[0].norm_offset)
            elif name.endswith("A_log"):
                weight.uniform_(1.0, 16.0, generator=random).log_()
            elif name.endswith("dt_bias"):  # steps of 0.001 to 0.1, before softplus
                step = weight.uniform_(math.log(1e-3), math.log(0.1), generator=random).exp()
                weight.copy_(step + torch.log(-torch.expm1(-step)))
            elif weight.ndim == 1:
                weight.zero_()
            elif "embed_tokens" in name and not self.options.tied:
                weight.normal_(0.0, _EMBEDDING_STD, generator=random)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.normal_(0.0, _HEAD_STD, generator=random)
            else:
                std = 1 / math.sqrt(weight[0].numel())
                shrink = _BRANCH_SHRINK if name.endswith(_WRITERS) else 1.0
                weight.normal_(0.0, std * shrink, generator=random)

    def forward(self, inputs: Tensor, cu_seqlens: Tensor | Packing) -> Tensor:
        """Compute inputs (N,) token ids, cu_seqlens (S+1,) bounds of the segments → (N, D) after the final norm."""
        packing = cu_seqlens if isinstance(cu_seqlens, Packing) else Packing(cu_seqlens)
        x = self.embed(inputs)
        carried = self._carried(inputs, x)
        x = self._streams(x)
        for i, layer in enumerate(self.layers):
            table = self._table(layer.options, inputs.device)
            if self.recompute and i % self.recompute == 0 and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, table, i, carried, use_reentrant=False)
            else:
                x = layer(x, packing, table, i, carried)
        out: Tensor = self.model.norm(self._of_streams(x))
        return out

    @property
    def layers(self) -> list[FusedLayer]:
        """Its layers, from the first to the last."""
        return [layer for layer in self.model.layers if isinstance(layer, FusedLayer)]

    @property
    def float32_scores(self) -> tuple[int, ...]:
        """The layers whose attention scores are in float32 where the rest is in a half type."""
        attends = ((i, layer.self_attn) for i, layer in enumerate(self.layers))
        return tuple(i for i, attention in attends if attention is not None and attention.float32_scores)

    @float32_scores.setter
    def float32_scores(self, layers: Sequence[int]) -> None:
        for i, layer in enumerate(self.layers):
            if layer.self_attn is not None:
                layer.self_attn.float32_scores = i in layers

    def embed(self, inputs: Tensor) -> Tensor:
        """Embed inputs (N,) token ids → (N, D) before the first layer."""
        x: Tensor = self.model.embed_tokens(inputs, self.compute_dtype)
        if self.options.embedding_scale is not None:
            x = x * torch.tensor(self.options.embedding_scale, dtype=x.dtype)
        return x

    def layer(self, number: int, x: Tensor, packing: Packing) -> Tensor:
        """Compute x (N, D) before a layer → (N, D) behind it."""
        self.require_plain()
        out: Tensor = self.model.layers[number](x, packing, self.table(number, x.device), number, Carried())
        return out

    def require_plain(self) -> None:
        """Raise UsageError where a layer reads more than the stream before it, and cannot be computed by itself."""
        if not self.options.is_plain:
            raise UsageError(
                "its layers share keys and values, or read the tokens themselves: layers are not taken one by one",
                "quantize it instead: that needs none",
            )

    def _carried(self, inputs: Tensor, x: Tensor) -> Carried:
        """Return what the layers read of inputs (N,) token ids and their rows x (N, D), each its own."""
        o = self.options.layers[-1]
        if not o.per_layer_input:
            return Carried()
        body = self.model
        own = body.per_layer_model_projection(x) * o.width**-0.5
        own = body.per_layer_projection_norm(own.view(-1, o.per_layer_input)).view(own.shape)
        if self.options.per_layer_rows:  # ids behind its table are of what is no text
            inputs = inputs.where(inputs < self.options.per_layer_rows, 0)
        given = body.embed_tokens_per_layer(inputs, self.compute_dtype) * o.per_layer_input**0.5
        return Carried(((own + given) * 2**-0.5).split(o.per_layer_input, dim=1))

    def _streams(self, x: Tensor) -> Tensor:
        """Return what the first layer reads: x (N, D), or streams (N, S, D) made of it where layers have several."""
        if self.options.layers[0].streams is None:
            return x
        return torch.stack([x, *(as_loud(p(x), x) for p in self.model.altup_projections)], dim=1)

    def _of_streams(self, x: Tensor) -> Tensor:
        """Return what the final norm reads (N, D), of x (N, D) or streams (N, S, D) behind the last layer."""
        if self.options.layers[0].streams is None:
            return x
        first, *others = x.unbind(1)
        projections = zip(others, self.model.altup_unembed_projections, strict=True)
        return torch.stack([first, *(as_loud(p(y), first) for y, p in projections)]).mean(0)

    def table(self, number: int, device: torch.device) -> RotationTable:
        """Return the rotations of a layer."""
        return self._table(self.layers[number].options, device)

    @property
    def head(self) -> Tensor:
        """The output table (V, D), the input table itself when they are tied: the parameter, or what is frozen."""
        table = self._head_table
        return table.weight if table.frozen is None else table.cast(self.compute_dtype)

    def head_operands(self) -> tuple[Tensor, Tensor]:
        """Return the output table in the compute type without gradient, and the parameter, or the same tensor.

        A quantized table is turned into numbers once, and only for as long as the result is held.
        """
        table = self._head_table
        cast = table.cast(self.compute_dtype)
        return cast, table.weight if table.frozen is None else cast

    @property
    def _head_table(self) -> Embedding:
        return self.model.embed_tokens if self.options.tied else self.lm_head

    @property
    def device(self) -> torch.device:
        table = self.model.embed_tokens  # not a norm: OLMo's have no weights
        return self.computes_on or (table.weight if table.frozen is None else table.frozen.tensors[0]).device

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute hidden (N, D) → (N, V) in fp32 (fp64 stays fp64); soft-capped where the family does.

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


# Above this size a layer's scores are computed in float32. At 16 and below bfloat16 adds next to nothing to the error
# of the gradient, at 30 it doubles it (bench/proof.py). The scores of SmolLM2 are 4 to 12, those of Qwen2.5 1,450.
LARGEST_HALF_SCORE = 20.0


class _ScoreSizes(Packing):
    """A packed batch that keeps the size of each layer's scores as it goes through a decoder.

    A score that is rounded to bfloat16 is off by up to 1/512 of itself, and the probability that comes of it is off by
    a factor of e to that: 6 % at a score of 32, 7 times at 1,000. What counts is the size of the scores that are
    attended to.
    """

    attends_itself = True

    def __init__(self, cu_seqlens: Tensor) -> None:
        super().__init__(cu_seqlens)
        self.sizes: list[float] = []

    def attend(self, qkv: Tensor, table: RotationTable, scoring: Scoring, bias: Tensor | None) -> Tensor:
        rows = qkv.to(table.dtype) if bias is None else qkv + bias
        largest = 0.0
        for bucket in self.buckets:
            padded = rows if bucket.rows is None else rows[bucket.rows.gather]
            _, (q, k, _, probabilities, *_) = attend_bucket(padded, None, bucket, table, scoring)
            scores = torch.bmm(q, k.transpose(1, 2)).abs()
            # a query head's rows lie together: (B·K, H/K, T) → the mean of its queries
            of_heads = (probabilities * scores).sum(-1).unflatten(1, (-1, bucket.length)).mean(-1)
            of_heads = of_heads.unflatten(0, (bucket.segments, -1)).mean(0)
            largest = max(largest, float(of_heads.max()))
        self.sizes.append(largest)
        return attention_over(qkv, self, table, scoring, bias)


@torch.no_grad()
def score_sizes(model: Decoder, inputs: Tensor, cu_seqlens: Tensor) -> list[float]:
    """For each layer the mean size of the scores that a query attends to, in the head where it is largest.

    0 for a layer without attention. inputs (N,) token ids, cu_seqlens (S+1,).
    """
    packing = _ScoreSizes(cu_seqlens)
    model(inputs, packing)
    sizes = iter(packing.sizes)
    return [next(sizes) if layer.attends else 0.0 for layer in model.options.layers]


def too_large(sizes: list[float]) -> tuple[int, ...]:
    """Return the layers whose scores should be in float32."""
    return tuple(layer for layer, size in enumerate(sizes) if not size <= LARGEST_HALF_SCORE)
