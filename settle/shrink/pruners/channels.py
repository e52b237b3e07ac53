"""Fewer channels of the feed-forwards: in each block those that the others can best stand in for."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field

from settle.shrink.prunable_model import PrunableModel, require_dense
from settle.shrink.pruners import OnProgress, Pruned, Pruner, always, num_kept
from settle.shrink.pruners._columns import narrow_columns, rows_of


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
            both = torch.cat([kept_channels, kept_channels + before])
            rows = {"mlp.gate_proj": kept_channels, "mlp.up_proj": kept_channels, "mlp.gate_up_proj": both}
            weights |= rows_of(subject, layer, rows)
        report = {"pruner": "channels", "channels": [before, keep], **narrowed.to_json()}
        return Pruned(subject.with_part(part, weights), report)
