"""Fewer channels of the feed-forwards: in each block those that the others can best stand in for."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from settle.shrink.prunable_model import PrunableModel, in_layer, require_dense
from settle.shrink.pruners import OnProgress, Pruned, Pruner, always, num_kept
from settle.shrink.pruners._columns import narrow_columns


class Channels(Pruner):
    """Narrows the feed-forwards."""

    shrinks: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    order: ClassVar[int] = 2

    share: float = Field(0.25, gt=0, lt=1, description="share of the channels to remove")
    keep: int | None = Field(None, gt=0, description="number of channels that a block keeps, instead of a share")
    repair: bool = Field(True, description="fit the channels that stay to do the work of those removed, where it helps")

    @classmethod
    def to_shape(cls, subject: PrunableModel, shape: Mapping[str, int]) -> Self:
        return cls.model_validate({"keep": shape["intermediate_size"]})

    def prune(
        self,
        subject: PrunableModel,
        windows: Sequence[Sequence[int]],
        texts: Sequence[str],
        on_progress: OnProgress = always,
    ) -> Pruned:
        require_dense(subject.part, "channels")
        before = subject.part.options().layers[0].inner
        keep = num_kept(before, self.keep, self.share)
        part = subject.part.with_fields(intermediate_size=keep)
        groups, owners = torch.arange(before).unsqueeze(1), torch.zeros(before, dtype=torch.long)
        narrowed = narrow_columns(
            subject, windows, ("mlp.down_proj", "gated"), groups, owners, keep, self.repair, on_progress
        )
        weights = dict(subject.weights) | narrowed.weights
        for layer, kept_channels in enumerate(narrowed.kept):
            weights |= _rows(subject, layer, kept_channels, before)
        report = {"pruner": "channels", "channels": [before, keep], **narrowed.to_json()}
        return Pruned(subject.with_part(part, weights), report)


def _rows(subject: PrunableModel, layer: int, channels: Tensor, inner: int) -> dict[str, Tensor]:
    """Rows of the gate's and the other branch's matrices and biases."""
    rows = {"gate_proj": channels, "up_proj": channels, "gate_up_proj": torch.cat([channels, channels + inner])}
    names = {in_layer(layer, f"mlp.{module}.{kind}"): r for module, r in rows.items() for kind in ("weight", "bias")}
    return {name: subject.weights[name][r] for name, r in names.items() if name in subject.weights}
