"""A live torch model's probabilities of given tokens, compared with the record that `Scorer` makes of a file.

N tokens of a window, P positions at a time, V vocabulary.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from settle.base.errors import UsageError
from settle.data.distributions import Compared, compare
from settle.data.likelihoods import Likelihoods
from settle.infer.live.sample import evaluating
from settle.infer.scorer import OnTokens, ignore_progress

if TYPE_CHECKING:
    from settle.model.decoder import Decoder

LOGITS_BYTES = 64 << 20  # of the positions that are computed together


def live_compare(
    model: "Decoder",
    reference: Likelihoods,
    on_tokens: OnTokens = ignore_progress,
    windows: Iterable[int] | None = None,
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
            on_tokens(at)
    return Compared.joined(parts)


def _logits(model: "Decoder", ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits (P, V), float32, after every token but the last."""
    import torch

    step = max(1, LOGITS_BYTES // (4 * model.options.vocab_size))
    with evaluating(model):
        inputs = torch.as_tensor(list(ids[:-1]), dtype=torch.long, device=model.device)
        ends = torch.tensor([0, len(inputs)], dtype=torch.int32, device=model.device)
        for hidden in model(inputs, ends).split(step):
            yield model.logits(hidden.float()).float().cpu().numpy()
