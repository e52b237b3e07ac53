"""Fewer heads: key/value heads with all queries that read them, or some of the queries of each."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from settle.base.errors import UsageError
from settle.model.config import LayerOptions
from settle.shrink.prunable_model import PrunableModel, require_dense, require_loadable
from settle.shrink.pruners import OnProgress, Pruned, Pruner, always, kept_number
from settle.shrink.pruners._columns import narrow_columns, rows_of


class Heads(Pruner):
    """Removes attention heads."""

    shrinks: ClassVar[tuple[str, ...]] = ("num_attention_heads", "num_key_value_heads")
    order: ClassVar[int] = 3

    share: float = Field(0.25, gt=0, lt=1, description="share of the heads to remove")
    what: Literal["groups", "queries"] | None = Field(
        None,
        description="key/value heads with their queries (groups), or queries of each; groups if there are several",
    )
    repair: bool = Field(True, description="fit the heads that stay to do the work of those removed, where it helps")

    @classmethod
    def to_shape(cls, subject: PrunableModel, shape: Mapping[str, int]) -> Self:
        o = subject.part.options().layers[0]
        if "num_key_value_heads" in shape:
            return cls.model_validate({"share": 1 - shape["num_key_value_heads"] / o.kv_heads, "what": "groups"})
        return cls.model_validate({"share": 1 - shape["num_attention_heads"] / o.heads, "what": "queries"})

    def prune(
        self,
        subject: PrunableModel,
        windows: Sequence[Sequence[int]],
        texts: Sequence[str],
        on_progress: OnProgress = always,
    ) -> Pruned:
        require_dense(subject.part, "heads")
        if len({o.head_dim for o in subject.part.options().layers}) > 1:
            raise UsageError("heads of several widths are not pruned here", "prune its channels, depth or vocabulary")
        o = subject.part.options().layers[0]
        if o.whole_norms or o.fused_by_head:
            why = (
                "is normed over all heads together"
                if o.whole_norms
                else "has heads as wide as the model over their number"
            )
            raise UsageError(f"no heads are pruned of a {subject.part.model_type}, which {why}", "prune its channels")
        group = o.heads // o.kv_heads
        what = self.what or ("groups" if o.kv_heads > 1 else "queries")
        before = o.kv_heads if what == "groups" else group
        if before == 1:
            fix = "prune queries" if what == "groups" and group > 1 else "prune something else"
            raise UsageError(f"there is only one of the {what}", fix)
        keep = kept_number(before, self.share)
        kv_heads, heads = (keep, keep * group) if what == "groups" else (o.kv_heads, o.kv_heads * keep)
        part = subject.part.with_fields(num_attention_heads=heads, num_key_value_heads=kv_heads)
        if not self.step:
            width = heads * o.head_dim
            fix = f"prune the width to {width} too; the nearest with all heads is {o.width}"
            require_loadable(subject.part, part, fix)
        groups, owners = _groups(o, what)
        narrowed = narrow_columns(
            subject, windows, ("self_attn.o_proj", "mixed"), groups, owners, keep, self.repair, on_progress
        )
        weights, removed = dict(subject.weights) | narrowed.weights, []
        for layer, kept_heads in enumerate(narrowed.kept):
            queries = (kept_heads[:: o.head_dim] // o.head_dim).tolist()
            removed.append([head for head in range(o.heads) if head not in queries])
            weights |= _rows(subject, layer, queries)
        report = {
            "pruner": "heads",
            "heads": [o.heads, heads],
            "key_value_heads": [o.kv_heads, kv_heads],
            "removed_queries": removed,
            **narrowed.to_json(),
        }
        return Pruned(subject.with_part(part, weights), report)


def _groups(o: LayerOptions, what: str) -> tuple[Tensor, Tensor]:
    """Return the inputs of `o_proj` that go together, (G, w), and to whom each group belongs, (G,)."""
    columns = torch.arange(o.heads * o.head_dim)
    if what == "groups":
        return columns.view(o.kv_heads, -1), torch.zeros(o.kv_heads, dtype=torch.long)
    return columns.view(o.heads, o.head_dim), torch.arange(o.kv_heads).repeat_interleave(o.heads // o.kv_heads)


def _rows(subject: PrunableModel, layer: int, queries: Sequence[int]) -> dict[str, Tensor]:
    """Rows of the projections for these query heads and the key/value heads that they read."""
    o = subject.part.options().layers[layer]
    keys = sorted({head // (o.heads // o.kv_heads) for head in queries})
    query, key = _of(queries, o.head_dim), _of(keys, o.head_dim)
    first, second = o.heads * o.head_dim, (o.heads + o.kv_heads) * o.head_dim
    rows = {"q_proj": query, "k_proj": key, "v_proj": key, "qkv_proj": torch.cat([query, key + first, key + second])}
    return rows_of(subject, layer, {f"self_attn.{module}": r for module, r in rows.items()})


def _of(heads: Sequence[int], width: int) -> Tensor:
    return (torch.tensor(heads).unsqueeze(1) * width + torch.arange(width)).flatten()
