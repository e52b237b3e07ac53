"""Layers of a decoder on packed sequences, in the compute type a machine is fastest in; one set for all families.

Parameters stay fp32 and keep Hugging Face's names and layout; `linear` says what the matrix products read.

Letters: N tokens, D hidden width, F feed-forward width, H query heads, K key/value heads, d head width, E experts.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import torch
from torch import Tensor, nn

from settle.model.config import DeltaNet, Experts, LayerOptions, Mamba2, RecurrenceOptions, ShortConvolution
from settle.model.layers.altup import AltUp, Laurel
from settle.model.layers.delta_net import GatedDeltaNet
from settle.model.layers.frozen_weights import Owner
from settle.model.layers.kernels import Lookup, activate, apply
from settle.model.layers.linear import Cast, Constant, Linear, RMSNorm, Stack, added, norm_of
from settle.model.layers.mamba2 import StateSpace
from settle.model.layers.mixer import Mixer, Recurrence
from settle.model.layers.packed_sequences import Carried, Packing, RotationTable
from settle.model.layers.self_attention import Attention
from settle.model.layers.short_convolution import GatedConvolution


class Embedding(Owner):
    """A table (V, D); `forward(ids (N,), dtype)` → (N, D)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self._cast = Cast(lambda w: w.detach())

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.frozen is not None:
            return self.frozen.rows(ids, dtype)
        return apply(Lookup, ids, self._cast(dtype, self.weight), self.weight)

    def cast(self, dtype: torch.dtype) -> Tensor:
        """Return the table in `dtype`, without gradient; only to be read."""
        return self._cast(dtype, self.weight) if self.frozen is None else self.frozen.dense(dtype)


class Projection(Owner):
    """A matrix (O, I) outside the layers; `forward(x (N, I))` → (N, O)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) if self.frozen is None else self.frozen.dense(x.dtype)
        return x @ weight.t()


class Selector(nn.Module):
    """A choice that jumps where its scores (N, C) change a little: `forward` returns what is taken, and which.

    A module, so that a proof can hold the choice fixed.
    """

    def taken(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """Return what is taken of scores (N, C) when the choice is given."""
        raise NotImplementedError


class TopExperts(Selector):
    """Which experts a token takes."""

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top

    def forward(self, chances: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choose by chances (N, E), plus bias (E,) → the chances of the chosen (N, K), and which they are (N, K)."""
        if bias is None:
            largest, chosen = chances.topk(self.top, dim=-1)
            return largest, chosen
        chosen = (chances.detach() + bias).topk(self.top, dim=-1).indices
        return chances.gather(1, chosen), chosen

    def taken(self, scores: Tensor, chosen: Tensor) -> Tensor:
        return scores.gather(1, chosen)


class OpenGates(Selector):
    """Which gates of a token are open: those above a quantile of a normal distribution that is as wide as they are."""

    def __init__(self, sparsity: float) -> None:
        super().__init__()
        self.deviations = NormalDist().inv_cdf(sparsity)

    def excess(self, gates: Tensor) -> Tensor:
        """Return by how much gates (N, F) are above the quantile."""
        return gates - gates.mean(1, keepdim=True) - self.deviations * gates.std(1, correction=0, keepdim=True)

    def forward(self, excess: Tensor) -> tuple[Tensor, Tensor]:
        """Open by excess (N, F) → (N, F), and which gates are open (N, F)."""
        is_open = excess > 0
        return self.taken(excess, is_open), is_open

    def taken(self, scores: Tensor, chosen: Tensor) -> Tensor:
        return scores * chosen


class MLP(nn.Module):
    """Feed-forward of width F, with a gate or without."""

    def __init__(self, o: LayerOptions, inner: int) -> None:
        super().__init__()
        if o.gated and o.fused_gate_up:
            self.gate_up_proj = Linear(o.width, 2 * inner, o.mlp_bias)
            members = [self.gate_up_proj]
        else:
            if o.gated:
                self.gate_proj = Linear(o.width, inner, o.mlp_bias)
            self.up_proj = Linear(o.width, inner, o.mlp_bias)
            members = [self.gate_proj, self.up_proj] if o.gated else [self.up_proj]
        self.down_proj = Linear(inner, o.width, o.mlp_bias)
        self.activation, self.is_gated, self.residual_scale = o.activation, o.gated, o.residual_scale
        self.gate_scale = o.gate_scale
        self.open_gates = OpenGates(o.sparsity) if o.sparsity else None
        self.gate_up = Stack([(linear, 0) for linear in members], None, o.norm_offset)
        self.down = Stack([(self.down_proj, 0)])

    def forward(self, x: Tensor) -> Tensor:
        """Compute mlp of x (N, D), behind its norm → (N, D)."""
        return self._down(None, self.gate_up.linear(x))

    def add(self, x: Tensor, norm: RMSNorm | None, after: RMSNorm | None = None, reads: Tensor | None = None) -> Tensor:
        """Compute x (N, D) → x + mlp(norm(x)), or x + after(mlp(norm(x))), in few passes over x.

        reads (N, D): what the norm reads instead of x.
        """
        residual, gate_up = self.gate_up.norm_linear(x if reads is None else reads, norm)
        residual = residual if reads is None else x
        if after is None and self.residual_scale == 1:
            return self._down(residual, gate_up)
        return added(residual, self._down(None, gate_up), after, self.residual_scale)

    def _down(self, residual: Tensor | None, gate_up: Tensor) -> Tensor:
        """Compute residual (N, D) or nothing + what gate_up (N, 2F), or (N, F) without a gate, becomes."""
        if self.gate_scale != 1:
            ones = gate_up.new_ones(gate_up.shape[1] // 2)
            gate_up = gate_up * torch.cat([ones * self.gate_scale, ones])
        if self.open_gates is not None:
            gate, up = gate_up.chunk(2, dim=1)
            gate_up = torch.cat([self.open_gates(self.open_gates.excess(gate))[0], up], dim=1)
        if self.is_gated:
            return self.down.gated(residual, gate_up, self.activation)
        inner = activate(gate_up, self.activation)
        return self.down.linear(inner) if residual is None else self.down.linear_add(residual, inner)


# what transformers adds to the sum of chances that do not sum to 1
_LEAST_SUM = 1e-6


class MixtureOfExperts(nn.Module):
    """Feed-forwards, of which a router picks a few for each token, and perhaps one that every token meets."""

    def __init__(self, o: LayerOptions, experts: Experts) -> None:
        super().__init__()
        self.gate = Linear(o.width, experts.num, experts.linear_bias, only_named=True)
        self.expert_bias = Constant(experts.num, 0.0) if experts.biased else None
        feed_forwards = [MLP(replace(o, mlp_bias=experts.linear_bias), experts.inner) for _ in range(experts.num)]
        for linear in (linear for one in feed_forwards for linear in one.gate_up.linears + one.down.linears):
            linear.only_named = experts.only_named
        self.experts = nn.ModuleList(feed_forwards)
        self.shared_expert = MLP(o, experts.shared) if experts.shared else None
        self.shared_expert_gate = Linear(o.width, 1, only_named=True) if experts.shared_gate else None
        self.options, self.choice = experts, TopExperts(experts.top)
        self.residual_scale = o.residual_scale
        self.router = Stack([(self.gate, 0)])
        self.shared_router = None if self.shared_expert_gate is None else Stack([(self.shared_expert_gate, 0)])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the chosen experts' results of x (N, D), behind its norm, weighted → (N, D)."""
        chances, chosen = self._chosen(x)
        tokens = torch.arange(len(x), device=x.device).repeat_interleave(self.choice.top)
        order = chosen.flatten().argsort(stable=True)
        tokens, shares = tokens[order], chances.to(x.dtype).flatten()[order].unsqueeze(1)
        # bincount would ask the device for the largest number first
        ones = torch.ones_like(order)
        counts = order.new_zeros(len(self.experts)).index_add_(0, chosen.flatten(), ones).tolist()
        # gathered and scattered once, not once an expert
        parts = zip(self.experts, x.index_select(0, tokens).split(counts), strict=True)
        results = torch.cat([expert(rows) for expert, rows in parts if len(rows)])
        out = torch.zeros_like(x).index_add(0, tokens, results * shares)
        if self.shared_expert is None:
            return out
        shared: Tensor = self.shared_expert(x)
        return out + (shared if self.shared_router is None else shared * self.shared_router.linear(x).sigmoid())

    def _chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the experts for x (N, D) → what the chosen ones are multiplied by (N, K), and which they are (N, K)."""
        wide, o = torch.promote_types(x.dtype, torch.float32), self.options
        logits = self.router.linear(x)
        chances = logits.to(wide).sigmoid() if o.sigmoid else logits.softmax(-1, dtype=wide)
        chances, chosen = self.choice(chances, None if self.expert_bias is None else self.expert_bias.weight)
        if o.normalised:
            chances = chances / (chances.sum(-1, keepdim=True) + (_LEAST_SUM if o.sigmoid else 0.0))
        return chances if o.scale == 1 else chances * o.scale, chosen

    def add(self, x: Tensor, norm: RMSNorm | None, after: RMSNorm | None = None, reads: Tensor | None = None) -> Tensor:
        """Compute x (N, D) → x + experts(norm(x)), or x + after(experts(norm(x))); reads: as of `MLP.add`."""
        reads = x if reads is None else reads
        return added(x, self(reads if norm is None else norm(reads)), after, self.residual_scale)


RECURRENCES: dict[type[RecurrenceOptions], Callable[..., Recurrence]] = {
    ShortConvolution: GatedConvolution,
    DeltaNet: GatedDeltaNet,
    Mamba2: StateSpace,
}


class DecoderLayer(nn.Module):
    """The definition of a layer: a mixer and a feed-forward, each between its norms and added to the residual.

    Most families have a norm before each, OLMo 2 behind each, Gemma both. The decoder runs `FusedLayer`, which computes
    the same. Its mixer is attention (`self_attn`), a recurrence under its family's name for it, or both, which then
    read one input.
    """

    def __init__(self, o: LayerOptions) -> None:
        super().__init__()
        self.options = o
        self.self_attn = Attention(o) if o.attends else None
        self.recurrence = "" if o.recurrence is None else o.recurrence.module
        if o.recurrence is not None:
            self.add_module(self.recurrence, RECURRENCES[type(o.recurrence)](o.recurrence, o))
        self.mlp: MLP | MixtureOfExperts = MLP(o, o.inner) if o.experts is None else MixtureOfExperts(o, o.experts)
        for name in o.norms():
            self.add_module(name, norm_of(o))
        if o.per_layer_input:
            self.per_layer_input_gate = Linear(o.width, o.per_layer_input)
            self.per_layer_projection = Linear(o.per_layer_input, o.width)
            self.post_per_layer_input_norm = RMSNorm(o.width, o.eps, o.norm_offset)
            self.input_gate, self.input_out = (
                Stack([(self.per_layer_input_gate, 0)]),
                Stack([(self.per_layer_projection, 0)]),
            )
        self.layer_scalar = Constant() if o.has_scalar else None
        self.altup = None if o.streams is None else AltUp(o, o.streams)
        self.laurel = None if o.streams is None else Laurel(o, o.streams)

    @property
    def norms(self) -> tuple[RMSNorm | None, RMSNorm | None, RMSNorm | None, RMSNorm | None]:
        """The norms before and behind attention, before and behind the feed-forward."""
        o = self.options
        before, second = self._norm("input_layernorm"), self._norm("post_attention_layernorm")
        if not o.sandwich_norms:
            return before, None, before if o.shared_norm else second, None
        return before, second, self._norm("pre_feedforward_layernorm"), self._norm("post_feedforward_layernorm")

    def _norm(self, name: str) -> RMSNorm | None:
        norm: RMSNorm | None = getattr(self, name, None)
        return norm

    def forward(self, x: Tensor, packing: Packing, table: RotationTable, number: int, carried: Carried) -> Tensor:
        """Compute x (N, D), or streams (N, S, D) → of the same shape. number: of the layer."""
        if self.altup is None:
            return self.finished(self.computed(x, packing, table, carried), number, carried)
        predicted = self.altup.predict(x)
        out = self.computed(predicted[:, 0], packing, table, carried)
        return self.finished(self.altup.correct(predicted, out), number, carried)

    def computed(self, x: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        """Compute its mixers and its feed-forward of x (N, D) → (N, D)."""
        before, after, between, last = (norm or nn.Identity() for norm in self.norms)
        scale = self.options.residual_scale
        of_mixers = 1.0 if len(self.mixers) > 1 else scale
        read = before(x)
        mixed = x + of_mixers * after(self.mixed(read, packing, table, carried))
        if self.laurel is not None:
            mixed = (mixed + self.laurel(read)) * 2**-0.5
        out: Tensor = mixed + scale * last(self.mlp(between(x if self.options.parallel else mixed)))
        return out

    def finished(self, x: Tensor, number: int, carried: Carried) -> Tensor:
        """Compute x behind the feed-forward → behind the layer, with what the tokens give to it alone."""
        if self.options.per_layer_input:
            read = x if self.altup is None else x[:, 0] * self.altup.correct_output_scale.to(x.dtype)
            gate_given = torch.cat([self.input_gate.linear(read), carried.inputs[number]], dim=1)
            given = self.input_out.gated(None, gate_given, self.options.activation)
            if self.altup is None:
                x = self.post_per_layer_input_norm.add(x, given)
            else:  # to all streams but the one it was computed of
                x = torch.cat([x[:, :1], x[:, 1:] + self.post_per_layer_input_norm(given).unsqueeze(1)], dim=1)
        return x if self.layer_scalar is None else self.layer_scalar(x)

    @property
    def mixers(self) -> list[Mixer]:
        """What mixes its tokens, in the order in which a packing sees them."""
        named = (self.self_attn, self.get_submodule(self.recurrence) if self.recurrence else None)
        return [mixer for mixer in named if isinstance(mixer, Mixer)]

    def mixed(self, x: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        """Compute its mixers of x (N, D), behind the norm → (N, D)."""
        branches: list[Tensor] = [mixer(x, packing, table, carried) for mixer in self.mixers]
        if len(branches) == 1:
            return branches[0]
        first, second = self.options.mixer_scales
        return branches[0] * first + branches[1] * second


class FusedLayer(DecoderLayer):
    """A layer whose norms, products and residuals are computed together, in half as many passes over activations."""

    def computed(self, x: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        return self.add_mlp(self.add_mixed(x, packing, table, carried), x)

    def add_mixed(self, x: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        """Compute x (N, D) → the residual stream after the mixers (N, D)."""
        before, after, _, _ = self.norms
        if len(self.mixers) == 1 and self.laurel is None:
            return self.mixers[0].add(x, before, packing, table, carried, after)
        read = x if before is None else before(x)
        mixed = added(x, self.mixed(read, packing, table, carried), after, 1.0)
        return mixed if self.laurel is None else (mixed + self.laurel(read)) * 2**-0.5

    def add_mlp(self, x: Tensor, before: Tensor) -> Tensor:
        """Compute x (N, D), the stream after the mixers, and before (N, D) them → the stream after the layer (N, D)."""
        _, _, norm, after = self.norms
        return self.mlp.add(x, norm, after, before if self.options.parallel else None)
