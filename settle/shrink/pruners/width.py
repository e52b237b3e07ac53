"""A narrower residual stream: the same channels of it go everywhere.

Channels that norms pass on strongly to matrices that listen to them stay (by activations, compare arXiv:2407.14679).
The norms lose part of what they divide by, which a factor makes up for; then, block after block, each matrix that
reads the stream is fitted to give what it gave in the whole model, on what it now reads.

Letters: N tokens, D width, K channels kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from settle.base.errors import UsageError
from settle.base.files import JsonObject
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import MLP
from settle.model.layers.linear import RMSNorm
from settle.shrink.activations.layer_activations import READ_BY, LayerActivations, LayerWalk, error, gram, refitted
from settle.shrink.prunable_model import PrunableModel, in_layer, require_dense, require_loadable
from settle.shrink.pruners import OnProgress, Pruned, Pruner, always, num_kept
from settle.shrink.pruners._columns import spread_out

_TABLE, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
# what reads the stream behind each norm, and what writes to it, by the field of `LayerActivations` that it reads
_READERS = {stage: READ_BY[stage] for stage in ("attention_input", "feed_forward_input")}
_WRITERS = {stage: READ_BY[stage][0] for stage in ("mixed", "gated")}


class Width(Pruner):
    """Narrows the residual stream."""

    shrinks: ClassVar[tuple[str, ...]] = ("hidden_size",)
    order: ClassVar[int] = 1

    share: float = Field(0.25, gt=0, lt=1, description="share of the channels to remove")
    keep: int | None = Field(None, gt=0, description="number of channels to keep, instead of a share")
    repair: bool = Field(True, description="fit each matrix to the output of the whole model's, where it helps")

    @classmethod
    def to_shape(cls, subject: PrunableModel, shape: Mapping[str, int]) -> Self:
        return cls.model_validate({"keep": shape["hidden_size"]})

    def prune(
        self,
        subject: PrunableModel,
        windows: Sequence[Sequence[int]],
        texts: Sequence[str],
        on_progress: OnProgress = always,
    ) -> Pruned:
        require_dense(subject.part, "channels")
        if subject.part.options().layers[0].centred_norms:
            raise UsageError("the width of a model whose norms subtract a mean is not pruned here", "prune its depth")
        before = subject.part.options().layers[0].width
        keep = num_kept(before, self.keep, self.share)
        part = subject.part.with_fields(hidden_size=keep)
        if not self.step:
            require_loadable(subject.part, part, _nearest(subject.part, keep))
        whole = LayerWalk(subject.build(trainable=False), windows)
        total = subject.num_layers * (1 + self.repair)
        strength, lost = _strengths(whole, subject, lambda layer: on_progress(layer, total))
        channels = strength.topk(keep).indices.sort().values
        narrow = _Narrow(subject, channels, lost)
        report = {
            "pruner": "width",
            "width": [before, keep],
            "kept_strength": round(float(strength[channels].sum() / strength.sum()), 6),
            "tokens": whole.num_tokens,
        }
        if self.repair:
            walk = LayerWalk(narrow.model, windows)
            report |= _repair(narrow, whole, walk, lambda layer: on_progress(subject.num_layers + layer, total))
        return Pruned(subject.with_part(part, narrow.weights()), report)


def _nearest(part: Architecture, keep: int) -> str:
    """Say what to do about a family in which llama.cpp takes the width for that of the query heads."""
    o = part.options().layers[0]
    group = o.head_dim * o.heads // o.kv_heads
    nearest = max(round(keep / group), 1) * group
    return f"prune heads first, as a step: {nearest // o.head_dim} of them are {nearest} wide"


@torch.no_grad()
def _strengths(walk: LayerWalk, subject: PrunableModel, on_layer: Callable[[int], object]) -> tuple[Tensor, "_Power"]:
    """Measure how much of what matrices read comes from each channel, (D,), each norm's readers counting alike.

    Also returns the mean squares of the stream before each norm.
    """
    strength, power = torch.zeros(subject.part.options().layers[0].width), _Power()
    states = walk.first()
    for layer in range(subject.num_layers):
        on_layer(layer + 1)
        parts = list(walk.activations(layer, states))
        for stage, modules in _READERS.items():
            columns = torch.cat(list(_matrices(subject, layer, modules).values())).square().sum(0)
            listened = _mean_square(getattr(p, stage) for p in parts) * columns
            strength += listened / listened.sum()
        power.streams += [_mean_square(p.before for p in parts), _mean_square(p.between for p in parts)]
        if subject.part.options().layers[layer].sandwich_norms:
            own = walk.model.layers[layer]
            assert isinstance(own.mlp, MLP) and own.self_attn is not None
            power.branches[layer] = (
                _mean_square(own.self_attn.out.linear(p.mixed) for p in parts),
                _mean_square(own.mlp.down.linear(p.gated) for p in parts),
            )
        states = [p.after for p in parts]
    power.streams.append(_mean_square(states))
    table = subject.weights.get(_HEAD, subject.weights[_TABLE])
    listened = _mean_square(walk.model.model.norm(x) for x in states) * table.square().sum(0)
    return strength + listened / listened.sum(), power


@dataclass
class _Power:
    """Mean squares of what the channels carry.

    streams (D,): of the residual stream before the norms, in order, the final one last. branches: of what attention and
    feed-forward give to the norms behind them, where a family has those.
    """

    streams: list[Tensor] = field(default_factory=list)
    branches: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def missing(self, squares: Tensor, channels: Tensor) -> float:
        """Return by what a norm over the kept channels alone divides, compared with before, with zeros for the rest."""
        return float((squares[channels].sum() / squares.sum()).sqrt())


class _Narrow:
    """The narrow model as a wide one with zeros: it computes the same, and every shape stays.

    A norm divides by the root of a mean, and zeros are counted in it; `weights` takes that back.
    """

    def __init__(self, subject: PrunableModel, channels: Tensor, power: _Power) -> None:
        self.subject, self.kept = subject, channels
        self.width = subject.part.options().layers[0].width
        self.model: Decoder = subject.build()
        self.tied = self.model.options.tied
        self._silence(power)

    @torch.no_grad()
    def _silence(self, power: _Power) -> None:
        gone = torch.ones(self.width, dtype=torch.bool)
        gone[self.kept] = False
        model = self.model.model
        for name in (_TABLE, _HEAD):
            if name in self.subject.weights:
                self.model.get_parameter(name)[:, gone] = 0
        for layer in range(self.subject.num_layers):
            for module in _WRITERS.values():
                for kind in ("weight", "bias"):
                    name = in_layer(layer, f"{module}.{kind}")
                    if name in self.subject.weights:
                        self.model.get_parameter(name)[gone] = 0
            own = self.model.layers[layer]
            before, between = power.streams[2 * layer : 2 * layer + 2]
            first, second = power.branches.get(layer, (None, None))
            for norm, squares in zip(own.norms, (before, first, between, second), strict=True):
                if norm is not None and squares is not None:
                    self._scale(norm, power.missing(squares, self.kept))
        self._scale(model.norm, power.missing(power.streams[-1], self.kept))

    @staticmethod
    def _scale(norm: RMSNorm, factor: float) -> None:
        norm.weight.copy_((norm.weight + norm.offset) * factor - norm.offset)

    def put(self, name: str, kept_columns: Tensor) -> None:
        """Set a matrix that reads the stream, from its columns of kept channels (O, K)."""
        with torch.no_grad():
            self.model.get_parameter(name).copy_(spread_out(kept_columns, self.kept, self.width))

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Return what the narrow model holds."""
        narrow, ratio = {}, (self.width / len(self.kept)) ** 0.5
        offset = self.model.options.layers[0].norm_offset
        # what the tables must make up for: of Gemma the narrow model multiplies embeddings by less
        narrow_part = self.subject.part.with_fields(hidden_size=len(self.kept))
        scales = [part.options().embedding_scale for part in (self.subject.part, narrow_part)]
        scaled = scales[0] != scales[1]
        for name, parameter in self.model.named_parameters():
            tensor = parameter.detach()
            if name.endswith("norm.weight") and ".self_attn." not in name:
                # a tied table that is scaled up to make up for a smaller embedding scale serves the logits too
                factor = 1.0 if name == _NORM and scaled and self.tied else ratio
                tensor = (tensor[self.kept] + offset) * factor - offset
            elif name == _TABLE:
                tensor = tensor[:, self.kept] * (ratio if scaled else 1.0)
            elif name == _HEAD or name.endswith(_READING):
                tensor = tensor[:, self.kept]
            elif any(f".{module}." in name for module in _WRITERS.values()):
                tensor = tensor[self.kept]
            narrow[name] = tensor.clone()
        return narrow


_READING = tuple(f"{module}.weight" for modules in _READERS.values() for module in modules)


def _repair(narrow: _Narrow, whole: LayerWalk, walk: LayerWalk, on_layer: Callable[[int], object]) -> JsonObject:
    """Fit the narrow model's matrices, block after block.

    Returns how many were, and the error that each block is left with, as a share of the power of the stream behind it.
    """
    fitted, errors = 0, []
    wide, own = whole.first(), walk.first()
    for layer in range(narrow.subject.num_layers):
        on_layer(layer + 1)
        targets = list(whole.activations(layer, wide))
        for stage in READ_BY:
            parts = list(walk.activations(layer, own))
            fitted += _fit(narrow, walk, layer, stage, targets, parts)
        wide, own = [p.after for p in targets], walk.layer(layer, own)
        errors.append(round(_missed(wide, own, narrow.kept), 6))
    fitted += _fit_head(narrow, whole, walk, wide, own)
    return {"fitted_matrices": fitted, "errors": errors}


@torch.no_grad()
def _fit_head(narrow: _Narrow, whole: LayerWalk, walk: LayerWalk, wide: Sequence[Tensor], own: Sequence[Tensor]) -> int:
    """Fit the factors of the last norm, so that logits are those of the whole model.

    Not what is added to all of them. Returns 1 when that is better on held-out windows.
    """
    norm, channels = narrow.model.model.norm, narrow.kept
    wanted, wanted_held = whole.split([whole.model.model.norm(x) for x in wide])
    unit, held = walk.split([norm(x)[:, channels] for x in own])
    if not held:
        return 0
    table = narrow.subject.weights[_TABLE if narrow.tied else _HEAD]
    table = table - table.mean(0)
    table_gram = table.T @ table
    left = gram(unit) * table_gram[channels][:, channels]
    right = (gram(unit, wanted) * table_gram[channels]).sum(1)
    # ones: what the norm does now
    pull = 1e-2 * left.diagonal().mean()
    change = torch.linalg.solve(left + pull * torch.eye(len(channels)).double(), right + pull).float()
    old, new = table[:, channels], table[:, channels] * change
    if error(wanted_held, table, held, new) >= error(wanted_held, table, held, old):
        return 0
    factor = norm.weight + norm.offset
    factor[channels] *= change
    norm.weight.copy_(factor - norm.offset)
    return 1


def _fit(
    narrow: _Narrow,
    walk: LayerWalk,
    layer: int,
    stage: str,
    targets: Sequence[LayerActivations],
    parts: Sequence[LayerActivations],
) -> int:
    """One stage's matrices; how many were better fitted than as they were, on held-out windows."""
    reads = stage in _READERS
    channels = narrow.kept if reads else slice(None)
    wanted, wanted_held = walk.split([getattr(p, stage) for p in targets])
    fit, held = walk.split([getattr(p, stage)[:, channels] for p in parts])
    if not held:
        return 0
    own, cross, better = gram(fit), gram(fit, wanted), 0
    modules = _READERS[stage] if reads else (_WRITERS[stage],)
    for name, old in _matrices(narrow.subject, layer, modules).items():
        current = narrow.model.get_parameter(name).detach()
        old, start = (old, current[:, channels]) if reads else (old[narrow.kept], current[narrow.kept])
        new = refitted(old, own, cross, start)
        if error(wanted_held, old, held, new) < error(wanted_held, old, held, start):
            better += 1
            if reads:
                narrow.put(name, new)
            else:
                with torch.no_grad():
                    narrow.model.get_parameter(name)[narrow.kept] = new
    return better


def _matrices(subject: PrunableModel, layer: int, modules: Sequence[str]) -> dict[str, Tensor]:
    names = [in_layer(layer, f"{module}.weight") for module in modules]
    return {name: subject.weights[name] for name in names if name in subject.weights}


def _mean_square(rows: Iterable[Tensor]) -> Tensor:
    """Return the mean square of each channel (D,), over all rows (N, D)."""
    total, number = torch.zeros(()), 0
    for batch in rows:
        total = total + batch.float().square().sum(0)
        number += len(batch)
    return total / max(number, 1)


def _missed(wide: Sequence[Tensor], own: Sequence[Tensor], channels: Tensor) -> float:
    missed = sum(float((a[:, channels] - b[:, channels]).square().sum()) for a, b in zip(wide, own, strict=True))
    return missed / max(sum(float(a.square().sum()) for a in wide), 1e-30)
