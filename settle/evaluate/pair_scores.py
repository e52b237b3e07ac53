"""How well scores tell passages that answer a question from passages that do not. Legend: P pairs."""

from collections.abc import Sequence

import numpy as np
import torch

from settle.base.files import JsonObject
from settle.data.batches import Batch
from settle.model.encoder import padded
from settle.model.encoders import PairScorer, TextEncoder

RESAMPLES, LEVEL = 1000, 0.95


@torch.no_grad()
def pair_scores(model: TextEncoder | PairScorer, batches: Sequence[Batch]) -> np.ndarray:
    """Return the logits of a reranker, or the cosines of an encoder, (P,)."""
    scores, training = [], model.training
    model.eval()
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        texts = [torch.from_numpy(batch.inputs[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
        if isinstance(model, PairScorer):
            scores.append(model.pairs(texts[0::2], texts[1::2]))
        else:
            first, second = (model.vectors(*padded(side, model.device)) for side in (texts[0::2], texts[1::2]))
            scores.append((first * second).sum(-1))
    model.train(training)
    out: np.ndarray = torch.cat(scores).numpy()
    return out


def separation(scores: np.ndarray, answers: np.ndarray) -> float:
    """Return the probability that a pair that answers scores above one that does not (AUROC); NaN of one kind.

    Ties count half.
    """
    order = scores.argsort(kind="stable")
    _, inverse, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks = np.empty(len(scores))
    ranks[order] = ((last - counts + 1 + last) / 2)[inverse]
    yes, no = int(answers.sum()), int((~answers).sum())
    return float((ranks[answers].sum() - yes * (yes + 1) / 2) / (yes * no)) if yes and no else float("nan")


def compare_scores(base: np.ndarray, tuned: np.ndarray, batches: Sequence[Batch]) -> JsonObject:
    """Compare two models' scores of the same pairs, with the interval of the difference.

    Groups of questions are resampled, not pairs.
    """
    labels, groups = [], []
    for batch in batches:
        bounds = batch.cu_seqlens
        labels += (batch.targets[bounds[2::2] - 1] == 1).tolist()
        assert batch.families is not None, "rows of a store have families"
        groups += batch.families[::2].tolist()
    answers = np.array(labels, bool)
    if answers.all() or not answers.any():
        kind = "answer" if answers.any() else "do not answer"
        text = f"not compared: all {len(answers)} pairs that judge {kind}; give pairs of both kinds, by labels 1 and 0"
        return {"verdict": "not compared", "headline": text}
    _, group = np.unique(np.array(groups), return_inverse=True)
    members = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    random, rises = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[g] for g in random.integers(len(members), size=len(members))])
        rises.append(separation(tuned[chosen], answers[chosen]) - separation(base[chosen], answers[chosen]))
    low, high = np.nanquantile(rises, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    before, after = separation(base, answers), separation(tuned, answers)
    verdict = "better" if low > 0 else "worse" if high < 0 else "no different"
    headline = (
        f"{verdict}: a passage that answers scores above one that does not in {after:.1%} of cases, the base's cosine "
        f"{before:.1%} (difference {after - before:+.1%}, {low:+.1%} to {high:+.1%}; "
        f"{len(members)} groups of questions)"
    )
    figures = {"base": before, "tuned": after, "low": low, "high": high}
    return {"verdict": verdict, "headline": headline, **figures}
