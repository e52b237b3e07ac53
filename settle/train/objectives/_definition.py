"""Outputs of a model as numpy arrays in float64, from which objectives compute their losses by definition.

Legend: N tokens of a packed batch, P of them that are supervised, D hidden width, V vocabulary.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from settle.data.batches import Batch
from settle.data.likelihoods import LEAST, Rows
from settle.model.decoder import Decoder

LOGITS_AT_ONCE = 1 << 22  # numbers of logits in memory


def supervised_places(batch: Batch) -> np.ndarray:
    """Return the places of the targets that count (P,)."""
    return np.flatnonzero(batch.targets >= 0)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return log-probabilities along the last axis."""
    shifted: np.ndarray = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


@torch.no_grad()
def hidden_states(model: Decoder, batch: Batch, places: np.ndarray) -> Tensor:
    """Return the states (P, D) behind the tokens at `places` (P,)."""
    inputs, bounds = (torch.from_numpy(a).to(model.device) for a in (batch.inputs, batch.cu_seqlens))
    states: Tensor = model(inputs, bounds)
    return states[torch.from_numpy(places).to(model.device)]


@torch.no_grad()
def logits_of(model: Decoder, hidden: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of `hidden` (P, D) and their logits (n, V), few at a time."""
    size = max(1, LOGITS_AT_ONCE // model.options.vocab_size)
    for first in range(0, len(hidden), size):
        rows = slice(first, first + size)
        yield rows, model.logits(hidden[rows]).cpu().double().numpy()


def target_nats(model: Decoder, batch: Batch) -> np.ndarray:
    """Return -log softmax(logits)[target] of each supervised target (P,)."""
    places = supervised_places(batch)
    targets = batch.targets[places]
    nats = [
        -np.take_along_axis(log_softmax(logits), targets[rows, None], 1)[:, 0]
        for rows, logits in logits_of(model, hidden_states(model, batch, places))
    ]
    return np.concatenate(nats)


def pair_texts(batch: Batch) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the texts of a batch of pairs, and for each pair 1 where its passage answers (P,)."""
    return np.split(batch.inputs, batch.cu_seqlens[1:-1]), batch.targets[batch.cu_seqlens[2::2] - 1]


def divergence(kind: str, log_p: np.ndarray, log_q: np.ndarray, mixture: float) -> np.ndarray:
    """Return KL(p‖q), its reverse, or the Jensen-Shannon divergence (arXiv:2306.13649) of rows (n, V): (n,)."""

    def kl(log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
        nats: np.ndarray = (np.exp(log_a) * (log_a - log_b)).sum(-1)
        return nats

    if kind == "forward":
        return kl(log_p, log_q)
    if kind == "reverse":
        return kl(log_q, log_p)
    log_m = np.logaddexp(log_p + math.log(mixture), log_q + math.log(1 - mixture))
    return mixture * kl(log_p, log_m) + (1 - mixture) * kl(log_q, log_m)


def divergence_from_record(kind: str, known: Rows, log_q: np.ndarray, mixture: float) -> np.ndarray:
    """Return what `divergence` is by a record of p.

    The drawn tokens stand for all unrecorded ones; or there are the recorded tokens and one outcome that is any other.
    """
    own, log_p = np.take_along_axis(log_q, known.top_ids.astype(int), 1), known.top_logprobs.astype(float)
    if kind == "forward":
        drawn = known.sampled_logprobs - np.take_along_axis(log_q, known.sampled_ids.astype(int), 1)
        rest = np.exp(known.rest_logmass) * drawn.mean(1) if drawn.shape[1] else 0.0
        return np.asarray((np.exp(log_p) * (log_p - own)).sum(1) + rest)
    others = np.log(np.maximum(1 - np.exp(own).sum(1), math.exp(LEAST)))
    coarse_p, coarse_q = np.column_stack([log_p, known.rest_logmass]), np.column_stack([own, others])
    return divergence(kind, np.maximum(coarse_p, LEAST), np.maximum(coarse_q, LEAST), mixture)
