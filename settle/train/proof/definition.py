"""The loss, what a token sees, and the first step against what they are by definition, which shares no code with them.

The model's outputs are watched while tokens are exchanged, and each layer's attention is computed again by its
definition, from the layer's options alone. Letters: N tokens of a packed batch, S segments, H query heads, K key/value
heads, d head width, D hidden width.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.data.batches import Batch
from settle.model.config import LayerOptions
from settle.model.decoder import Decoder
from settle.model.layers.attention import attention_over
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.packed_sequences import Packing, Recurrent, RotationTable, Scoring
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.proof.recurrences import recurrence_by_definition

# A share of the loss, or of SMALL where it is smaller, as a student's near its teacher. float32: logits of a large
# model, rounded and summed in another order.
OFF, SMALL = {torch.float64: 1e-8, torch.float32: 1e-4}, 1e-3
MOST_STEPPED = 1 << 26  # numbers that take the proof's one step: the optimizer's state of more is no small memory
MOST_TIMES = 2.0  # longer or shorter than its rate says, that a first step may be: weight decay and rounding are in it


def require_definition(model: FreezableModule, objective: Objective, batch: Batch) -> str:
    """Check that a batch's loss and count follow from the objective's formula in numpy, from the model's outputs.

    Run it where the weights are not special: before the first step a model and its base, or a student and its teacher,
    may be one and the same. Raises ProofError.
    """
    name = objective.part_name()
    stated = objective.by_definition(model, batch)
    if stated is None:
        return f"not compared: {name} states no definition"
    wanted, number = stated
    with torch.no_grad():
        total, count = objective.batch_loss(model, batch)
    if not (count == number == objective.count(batch)):
        raise ProofError(
            f"{name}: its loss is divided by {objective.count(batch)} and counts {count}, by its definition {number}",
            "accumulated gradients would have another size: report this",
        )
    loss, exact = float(total) / max(1, count), wanted / max(1, count)
    most = OFF[torch.promote_types(model.compute_dtype, torch.float32)]
    if not abs(loss - exact) <= most * max(SMALL, abs(exact)):  # so that NaN fails
        raise ProofError(
            f"{name}: its loss is {loss:.6f}, by its definition {exact:.6f}",
            "the run would learn something else than was asked for: report this",
        )
    return f"{loss:.4f} nats, {abs(loss - exact):.1e} off"


def require_tied(model: Decoder) -> None:
    """Check that the trained output table of a tied model is the input table itself. Raises ProofError."""
    table = model.model.embed_tokens
    if model.options.tied and table.frozen is None and model.head_operands()[1] is not table.weight:
        raise ProofError(
            "the output table is a copy of the input table that it is tied to",
            "it would stay as it is while the input table is trained: report this",
        )


@torch.no_grad()
def moves_loss(parameter: torch.nn.Parameter, loss: Callable[[], float], rounding: float) -> bool:
    """Return whether the loss changes with a parameter by more than a share of it, which is rounding."""
    before, own = loss(), parameter.detach().clone()
    parameter.mul_(2.0)
    after = loss()
    parameter.copy_(own)
    return not abs(after - before) <= rounding * abs(before)


def stepped(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """Return the tensors that take the proof's step.

    All, or the first ones where all are too many to have a state next to them; the others are frozen from then on.
    """
    chosen: dict[str, torch.nn.Parameter] = {}
    numbers = 0
    for name, parameter in model.trainable().items():
        numbers += parameter.numel()
        if chosen and numbers > MOST_STEPPED:
            break
        chosen[name] = parameter
    for name, parameter in model.trainable().items():
        parameter.requires_grad_(name in chosen)
    return chosen


def require_rate(optimizer: Optimizer, model: FreezableModule, steps: Mapping[str, Tensor], scale: float) -> str:
    """Check that the first step is as long as the rates say. steps: the change of each tensor. Raises ProofError.

    scale: what the rates were multiplied by. The median over tensors counts: of one that is large, or that has hardly
    any gradient, rounding may decide.
    """
    shares = optimizer.shares_of_first_step(model, steps)
    if not shares:
        return "its length is not compared with its rate"
    share = float(np.median(list(shares.values()))) / scale
    if not 1 / MOST_TIMES < share < MOST_TIMES:
        raise ProofError(
            f"the optimizer's first step is {share:.2g} times as long as its rate says",
            "the run would learn at another rate than was asked for: report this",
        )
    return f"as long as its rate says, times {share:.2f}"


# --- what a token sees ---

FEWEST_TOKENS = 3  # of a segment in which a token in the middle has others on both sides
MOVED = {torch.float64: 1e-8, torch.float32: 1e-4}  # relative: a larger change of an output is no rounding


def require_sight(model: Decoder, batch: Batch, rows: Sequence[object]) -> str:
    """Check that a token sees itself and what is before it in its document, in its order; raises as below."""
    seen = require_causal(model, batch, rows)
    return f"{seen}; attention by its definition: {require_attention(model, batch)}"


@torch.no_grad()
def require_causal(model: Decoder, batch: Batch, rows: Sequence[object]) -> str:
    """Exchange a token in every second document, then in the others, and check which outputs move.

    Outputs before it and in other documents stay as they are; its own and a later one move. Where layers have
    recurrences, so too for the last token of a document, which is nearest to the next one's convolutions and state.
    rows: names of the batch's segments. Raises ProofError naming the row.
    """
    bounds = batch.cu_seqlens.tolist()
    segments = [i for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)) if b - a >= FEWEST_TOKENS]
    edges = torch.from_numpy(batch.cu_seqlens).to(model.device)
    inputs = torch.from_numpy(batch.inputs).to(model.device)
    before = model(inputs, edges)
    most = MOVED[before.dtype]
    ends = (False, True) if any(layer.recurrence is not None for layer in model.options.layers) else (False,)
    for parity, is_last in itertools.product((0, 1), ends):
        changed = inputs.clone()
        own = [i for i in segments if i % 2 == parity]
        places = {i: bounds[i + 1] - 1 if is_last else (bounds[i] + bounds[i + 1]) // 2 for i in own}
        for place in places.values():
            changed[place] = _another(batch.inputs, place, model.options.vocab_size)
        if not places:
            continue
        gap = (model(changed, edges) - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)
        moved = (gap > most).cpu().numpy() | ~np.isfinite(gap.cpu().numpy())
        for i, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
            name = f"row {i} ({rows[i]})" if i < len(rows) else f"row {i}"
            _require_segment(moved[first:last], places[i] - first if i in places else None, name)
    return f"{len(segments)} documents"


def _require_segment(moved: np.ndarray, place: int | None, name: str) -> None:
    """Check which outputs of a segment moved.

    moved: whether each output changed; place: of the token that was exchanged in it, None in another one.
    """
    if place is None:
        if moved.any():
            raise ProofError(
                f"{name}: its outputs change with a token of another document",
                "attention or a recurrence crosses a document's border: report this",
            )
    elif moved[:place].any():
        ahead = place - int(np.flatnonzero(moved)[0])
        raise ProofError(
            f"{name}: an output changes with a token that comes {ahead} later",
            "the model sees what it is to predict: the causal mask is wrong, report this",
        )
    elif not moved[place]:
        raise ProofError(f"{name}: an output does not depend on its own token", "report this")
    elif place + 1 < len(moved) and not moved[place + 1 :].any():
        raise ProofError(
            f"{name}: no output depends on the tokens before its own", "its layers see nothing: report this"
        )


def _another(ids: np.ndarray, place: int, vocab_size: int) -> int:
    """Another token than the one there, of the batch if it has one."""
    others = ids[ids != ids[place]]
    return int(others[place % len(others)]) if len(others) else (int(ids[place]) + 1) % vocab_size


class _Watched(Packing):
    """A packed batch that compares every layer's mixers with their definition as it goes through a decoder.

    differences: relative difference of each layer, by its number. still: the layers in which the order of what a token
    sees does not matter to it.
    """

    attends_itself = True

    def __init__(self, cu_seqlens: Tensor, layers: Sequence[LayerOptions]) -> None:
        super().__init__(cu_seqlens)
        self.layers = layers
        self.attending = iter([number for number, layer in enumerate(layers) if layer.attends])
        self.recurrent = iter([number for number, layer in enumerate(layers) if layer.recurrence is not None])
        self.differences: dict[int, float] = {}
        self.still: list[int] = []

    def attend(self, qkv: Tensor, table: RotationTable, scoring: Scoring, bias: Tensor | None) -> Tensor:
        number = next(self.attending)
        options = self.layers[number]
        out = attention_over(qkv, self, table, scoring, bias)
        wanted = attention_by_definition(qkv, self.bounds, options, bias, scoring.sinks)
        self._compare(number, out, wanted)
        first, last = max(zip(self.bounds, self.bounds[1:], strict=False), key=lambda edges: edges[1] - edges[0])
        turned = torch.arange(len(qkv), device=qkv.device)
        seen = min(last - first - 1, (options.window or last) - 1)
        turned[last - 1 - seen : last - 1] = turned[last - 1 - seen : last - 1].flip(0)
        moved = attention_over(qkv[turned], self, table, scoring, bias)[last - 1] - out[last - 1]
        if seen > 1 and options.rope.turns and not float(moved.norm()) > MOVED[out.dtype] * float(out[last - 1].norm()):
            self.still.append(number)
        return out

    def recur(self, recurrence: Recurrent, rows: Tensor) -> Tensor:
        number = next(self.recurrent)
        out = recurrence.whole(rows, self)
        self._compare(number, out, recurrence_by_definition(rows, self.bounds, self.layers[number], recurrence))
        return out

    def _compare(self, number: int, out: Tensor, wanted: Tensor) -> None:
        off = float((out.cpu().double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
        self.differences[number] = max(off, self.differences.get(number, 0.0))


@torch.no_grad()
def require_attention(model: Decoder, batch: Batch) -> str:
    """Check that each layer's mixers are what its options say: mask, window, rotations, scale and cap; the recurrence.

    Also that the order of the tokens that the last one sees matters to it. Raises ProofError naming the layer.
    """
    edges = torch.from_numpy(batch.cu_seqlens).to(model.device)
    packing = _Watched(edges, [layer.options for layer in model.layers])
    model(torch.from_numpy(batch.inputs).to(model.device), packing)
    if packing.still:
        raise ProofError(
            f"layer {packing.still[0]}: the order of the tokens does not matter to its attention",
            "positions are lost: report this",
        )
    most = MOVED[torch.promote_types(model.compute_dtype, torch.float32)]
    for number, off in packing.differences.items():
        if not off <= most:
            raise ProofError(
                f"layer {number}: its {_mixers(model.options.layers[number])} is {off:.1e} off its definition "
                "(mask, window, rotation, scale, cap)",
                "the exported model would compute something else: report this",
            )
    return f"{len(packing.differences)} layers, {max(packing.differences.values()):.1e} off"


def _mixers(layer: LayerOptions) -> str:
    """Name what mixes a layer's tokens."""
    recurrence = "" if layer.recurrence is None else f"recurrence `{layer.recurrence.module}`"
    return " or ".join(filter(None, ("attention" if layer.attends else "", recurrence)))


def attention_by_definition(
    qkv: Tensor,
    bounds: Sequence[int],
    options: LayerOptions,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention with rotary positions in float64 on the CPU, segment by segment, slow and plain.

    qkv (N, (H + 2K)·d), the numbers of query and key heads that turn together beside each other; bounds (S + 1,); bias
    ((H + 2K)·d,): what qkv still lacks; sinks (H,): a score of each head without a value → (N, H·d). Sources:
    arXiv:1706.03762, arXiv:2104.09864; groups of query heads share a key head (arXiv:2305.13245).
    """
    o, rope = options, options.rope
    wide = (qkv if bias is None else qkv + bias).cpu().double().unflatten(1, (-1, o.head_dim))
    rotary = rope.rotary_dim or o.head_dim
    plain = rope.theta ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
    results = []
    for first, last in zip(bounds, bounds[1:], strict=False):
        rows, place = wide[first:last], torch.arange(last - first)
        chosen = rope.frequencies
        if rope.long_after is not None and last - first > rope.long_after:
            chosen = rope.long_frequencies
        frequencies = plain if chosen is None else torch.tensor(chosen, dtype=torch.float64)
        angles = torch.outer(place.double(), frequencies).unsqueeze(1)
        cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
        heads, values = rows[:, : o.heads + o.kv_heads].clone(), rows[:, o.heads + o.kv_heads :]
        even, odd = heads[..., 0:rotary:2].clone(), heads[..., 1:rotary:2].clone()
        heads[..., 0:rotary:2], heads[..., 1:rotary:2] = even * cos - odd * sin, even * sin + odd * cos
        group = o.heads // o.kv_heads
        keys, shared = heads[:, o.heads :].repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scale = o.head_dim**-0.5 if o.query_scale is None else o.query_scale
        scores = torch.einsum("qhd,khd->hqk", heads[:, : o.heads], keys) * scale
        if o.soft_cap is not None:
            scores = torch.tanh(scores / o.soft_cap) * o.soft_cap
        back = place[:, None] - place[None, :]
        unseen = (back < 0) | (back >= o.window) if o.window is not None else back < 0
        scores = scores.masked_fill(unseen, -torch.inf)
        if sinks is not None:
            sunk = sinks.cpu().double()[:, None, None].expand(*scores.shape[:2], 1)
            scores = torch.cat([scores, sunk], -1)
        shares = scores.softmax(-1)[..., : len(rows)]
        results.append(torch.einsum("hqk,khd->qhd", shares, shared).flatten(1))
    return torch.cat(results)
