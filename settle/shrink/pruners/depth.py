"""Removes the blocks whose removal changes least, one by one or several in a row.

`influence` is how little a block turns the residual stream: one minus the cosine of what goes in and what comes out
(arXiv:2403.03853); for several in a row, of what goes into the first and comes out of the last (arXiv:2403.17887).
`loss` is measured: the divergence of the next token from the whole model's when the block is left out, again after
every block that went (compare arXiv:2402.02834).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from settle.base.errors import UsageError
from settle.model.architectures import Architecture
from settle.shrink.activations.layer_activations import LayerWalk, kl
from settle.shrink.prunable_model import PrunableModel, in_layer, layer_of, require_loadable
from settle.shrink.pruners import SEARCH_FLOPS, OnProgress, Pruned, Pruner, always, kept_number

LEAST_TOKENS, LEAST_WINDOW_TOKENS = 512, 64  # that such a search needs, in all and of each window
_SAMPLED = 1024  # positions of the residual stream that are kept for every layer


class Depth(Pruner):
    """Removes blocks."""

    shrinks: ClassVar[tuple[str, ...]] = ("num_hidden_layers",)

    share: float = Field(0.25, gt=0, lt=1, description="share of the blocks to remove")
    drop: int | None = Field(None, ge=1, description="number of blocks to remove, instead of a share")
    by: Literal["loss", "influence"] = Field("loss", description="measure the loss without each, or its influence")
    in_a_row: bool = Field(False, description="remove neighbouring blocks only")

    @classmethod
    def to_shape(cls, subject: PrunableModel, shape: Mapping[str, int]) -> Self:
        return cls.model_validate({"drop": subject.num_layers - shape["num_hidden_layers"]})

    def affordable(
        self, subject: PrunableModel, windows: Sequence[Sequence[int]], flops: float | None = None
    ) -> tuple[Self, Sequence[Sequence[int]]]:
        """Return the windows that a search by loss has time for; search by influence where they are too few.

        Each block that goes is found by leaving out each one that is there, and computing the blocks behind it again.
        """
        drop, numbers = self.drop or 1, subject.part.num_non_embedding_parameters
        room = int((flops or SEARCH_FLOPS) / (drop * subject.num_layers * numbers))
        if room < LEAST_TOKENS:
            return self.model_copy(update={"by": "influence"}), windows
        each = max(LEAST_WINDOW_TOKENS, room // len(windows))
        return self, [window[:each] for window in windows[: max(1, room // each)]]

    def prune(
        self,
        subject: PrunableModel,
        windows: Sequence[Sequence[int]],
        texts: Sequence[str],
        on_progress: OnProgress = always,
    ) -> Pruned:
        before = subject.num_layers
        after = before - self.drop if self.drop is not None else kept_number(before, self.share)
        if after < 1:
            raise UsageError(f"{self.drop} of {before} blocks cannot go", f"drop at most {before - 1}")
        order = _Order(subject.part, after)
        with torch.no_grad():
            walk = LayerWalk(subject.build(trainable=False), windows)
            if self.by == "influence":
                layers, scores = self._by_influence(walk, order)
            else:
                layers, scores = self._by_loss(walk, order, on_progress)
            divergence = _divergence(walk, layers)
        gone = [i for i in range(before) if i not in layers]
        report = {
            "pruner": "depth",
            "blocks": [before, after],
            "removed": gone,
            "by": self.by,
            "in_a_row": self.in_a_row,
            "scores": [round(score, 6) for score in scores],
            "tokens": walk.num_tokens,
            "kl": divergence,
        }
        return Pruned(without(subject, layers), report)

    def _by_influence(self, walk: LayerWalk, order: "_Order") -> tuple[list[int], list[float]]:
        states = _streams(walk)
        num_layers = len(states) - 1
        scores = [_turn(states[i], states[i + 1]) for i in range(num_layers)]
        if self.in_a_row:
            run = num_layers - order.left
            layers = min(order.runs(), key=lambda layers: _turn(states[_start(layers)], states[_start(layers) + run]))
            return layers, scores
        return order.greedy(lambda layers: {i: scores[i] for i in layers}), scores

    def _by_loss(self, walk: LayerWalk, order: "_Order", on_progress: OnProgress) -> tuple[list[int], list[float]]:
        positions = walk.positions()
        num_layers = order.there
        whole = walk.logprobs(walk.through(range(num_layers), walk.first()), positions)
        first: list[float] = []
        latest: dict[int, float] = {}
        sizes = range(num_layers, order.left, -1)  # numbers of blocks of which one is left out
        done, total = 0, sum(size * (size + 1) // 2 for size in sizes)

        def costs(layers: Sequence[int]) -> dict[int, float]:
            nonlocal done, latest
            if latest and not on_progress(done, total):
                return {number: latest[number] for number in layers}  # as measured before the last block went
            states, losses = walk.first(), {}
            for at, number in enumerate(layers):
                done += len(layers) - at
                on_progress(done, total)
                losses[number] = kl(whole, walk.logprobs(walk.through(layers[at + 1 :], states), positions))
                states = walk.layer(number, states)
            if not first:
                first.extend(losses.values())
            latest = losses
            return losses

        if not self.in_a_row:
            return order.greedy(costs), first
        measured: dict[tuple[int, ...], float] = {}
        for layers in order.runs():
            measured[tuple(layers)] = kl(whole, walk.logprobs(walk.through(layers, walk.first()), positions))
        best = min(measured, key=lambda option: measured[option])
        return list(best), [round(v, 6) for v in measured.values()]


def without(subject: PrunableModel, layers: Sequence[int]) -> PrunableModel:
    """Return the model with these of its blocks, in their order. Raises UsageError as `Depth` does."""
    place = {old: new for new, old in enumerate(layers)}
    part = subject.part.shortened(len(layers))
    weights = {}
    for name, tensor in subject.weights.items():
        layer = layer_of(name)
        if layer is None:
            weights[name] = tensor
        elif layer in place:
            weights[in_layer(place[layer], name.split(".", 3)[3])] = tensor
    return subject.with_part(part, weights)


class _Order:
    """Which blocks may be left when `left` are: kinds of blocks must follow each other as llama.cpp has them."""

    def __init__(self, part: Architecture, left: int) -> None:
        self.there, self.left = len(part.options().layers), left
        shorter = part.shortened(left)
        self.kinds: list[Hashable] = list(part.options().layers)
        self.wanted: list[Hashable] = list(shorter.options().layers)
        if not self.fits(range(self.there)):
            near = [n for n in range(1, self.there) if _possible(part, n)]
            nearest = min(near, key=lambda n: abs(n - left), default=None)
            raise UsageError(
                f"llama.cpp loads no {part.model_type} of {left} blocks made of these {self.there}",
                f"leave {nearest}" if nearest else "prune something else",
            )
        require_loadable(part, shorter, f"leave {left - 1} or {left + 1} blocks")

    def fits(self, layers: Sequence[int]) -> bool:
        """Return whether more can go from these until the kinds are as wanted."""
        return _within(self.wanted, [self.kinds[i] for i in layers])

    def greedy(self, costs: Callable[[Sequence[int]], dict[int, float]]) -> list[int]:
        """One block after the other, the one that costs least of those that may go. costs: of each that is left."""
        layers = list(range(self.there))
        while len(layers) > self.left:
            cost = costs(layers)
            allowed = [i for i in layers if self.fits([k for k in layers if k != i])]
            layers.remove(min(allowed, key=cost.__getitem__))
        return layers

    def runs(self) -> list[list[int]]:
        """Return what may be left when the blocks that go follow each other. Raises UsageError when that cannot be."""
        possible = _runs(self.kinds, self.wanted)
        if possible:
            return possible
        raise UsageError(
            f"no {self.there - self.left} blocks in a row may go: the kinds of blocks would not follow each other as "
            "llama.cpp has them",
            "let them be chosen one by one, which is always possible here",
        )


def _possible(part: Architecture, left: int) -> bool:
    return _within(list(part.shortened(left).options().layers), list(part.options().layers))


def _runs(kinds: Sequence[Hashable], wanted: Sequence[Hashable]) -> list[list[int]]:
    gone = len(kinds) - len(wanted)
    layers = [[*range(start), *range(start + gone, len(kinds))] for start in range(len(wanted) + 1)]
    return [left for left in layers if [kinds[i] for i in left] == list(wanted)]


def _within(wanted: Sequence[Hashable], kinds: Sequence[Hashable]) -> bool:
    """Return whether `wanted` is left of `kinds` when some go."""
    rest = iter(kinds)
    return all(any(kind == other for other in rest) for kind in wanted)


def _start(layers: Sequence[int]) -> int:
    """Return the first block that is gone."""
    return next((at for at, number in enumerate(layers) if at != number), len(layers))


def _streams(walk: LayerWalk) -> list[Tensor]:
    """Return the residual stream before each layer and behind the last, at some positions."""
    positions = walk.positions(_SAMPLED)
    states = walk.first()
    streams = [torch.cat(states)[positions]]
    for number in range(len(walk.model.model.layers)):
        states = walk.layer(number, states)
        streams.append(torch.cat(states)[positions])
    return streams


def _turn(before: Tensor, after: Tensor) -> float:
    """One minus the mean cosine between rows (P, D)."""
    return 1.0 - float(cosine_similarity(before, after, dim=-1).mean())


def _divergence(walk: LayerWalk, layers: Sequence[int]) -> float:
    """Mean KL of the model with these blocks from the whole one, nats per token on the walk's text."""
    positions = walk.positions()
    everything = range(len(walk.model.model.layers))
    whole = walk.logprobs(walk.through(everything, walk.first()), positions)
    return kl(whole, walk.logprobs(walk.through(layers, walk.first()), positions))
