"""What a live torch model holds likely over given tokens: the same records as `Scorer` makes of a file.

N tokens of a window, P positions at a time, V vocabulary.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import UsageError
from settle.data.distributions import SAMPLED, TOP, Compared, Rows, compare, draws, sizes, summarise
from settle.data.likelihoods import Likelihoods, LikelihoodsWriter
from settle.infer.sample import evaluating
from settle.infer.scorer import Told, unheard

LOGITS_BYTES = 64 << 20  # of the positions that are looked at together


def live_rows(model: Any, ids: Sequence[int], top: int = TOP, sampled: int = SAMPLED) -> Rows:
    """What is kept of a live model's distributions over one window (N,), for all its tokens but the first."""
    window = np.asarray(ids, np.int32)
    top, sampled = sizes(model.options.vocab_size, top, sampled)
    drawn, parts, at = draws(window, sampled), [], 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for logits in _logits(model, ids):
            after = at + len(logits)
            parts.append(summarise(logits, window[at + 1 : after + 1], drawn[at:after], top, pool))
            at = after
    return Rows.joined(parts)


def live_likelihoods(
    model: Any,
    windows: Iterable[Sequence[int]],
    folder: Path,
    about: Mapping[str, Any] | None = None,
    told: Told = unheard,
    top: int = TOP,
    sampled: int = SAMPLED,
) -> Likelihoods:
    """The record of a live `Decoder` over windows of ids of at least two each, written to `folder`.

    It computes in the model's own `compute_dtype`. about, told: as of `Scorer.likelihoods`. Raises what
    `LikelihoodsWriter` raises.
    """
    windows = list(windows)
    num_vocab, positions = model.options.vocab_size, sum(len(ids) - 1 for ids in windows)
    with LikelihoodsWriter(folder, num_vocab, about or {}, positions, top, sampled) as writer:
        for ids in windows:
            writer.append(ids, live_rows(model, ids, top, sampled))
            told(len(ids) - 1)
        return writer.close()


def live_compare(
    model: Any, reference: Likelihoods, told: Told = unheard, windows: Iterable[int] | None = None
) -> Compared:
    """A live `Decoder` against a record, over all its windows or those of some numbers. Raises UsageError when the two
    do not share a vocabulary."""
    if reference.num_vocab != model.options.vocab_size:
        raise UsageError(
            f"the model knows {model.options.vocab_size:,} tokens, the reference {reference.num_vocab:,}: there is no "
            "divergence between their distributions",
            "compare bits per byte on the same text",
        )
    parts = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for index in range(reference.num_windows) if windows is None else windows:
            window, rows, at = reference.window(index), reference.rows(index), 0
            for logits in _logits(model, window.tolist()):
                after = at + len(logits)
                parts.append(compare(rows[at:after], logits, window[at + 1 : after + 1], pool))
                at = after
            told(at)
    return Compared.joined(parts)


def _logits(model: Any, ids: Sequence[int]) -> Iterator[np.ndarray]:
    """Logits (P, V), float32, after every token but the last."""
    import torch

    step = max(1, LOGITS_BYTES // (4 * model.options.vocab_size))
    with evaluating(model):
        inputs = torch.as_tensor(list(ids[:-1]), dtype=torch.long, device=model.device)
        ends = torch.tensor([0, len(inputs)], dtype=torch.int32, device=model.device)
        for hidden in model(inputs, ends).split(step):
            yield model.logits(hidden.float()).float().cpu().numpy()
