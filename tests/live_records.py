"""Records of a live torch model's distributions, made as `Scorer` makes them of a file, and its comparison with one."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from settle.data.likelihoods import SAMPLED, TOP, Compared, LikelihoodsWriter, Rows, compare, draws, sizes, summarise
from settle.infer.live_sampling import evaluating, logprobs

LOGITS_BYTES = 64 << 20  # of the positions that are computed together


def live_rows(model, ids):
    """What is kept of a live model's distributions over one window (N,), for all its tokens but the first."""
    window = np.asarray(ids, np.int32)
    top, sampled = sizes(model.options.vocab_size, TOP, SAMPLED)
    logits = logprobs(model, ids[:-1], range(len(ids) - 1)).cpu().numpy()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return Rows.joined([summarise(logits, window[1:], draws(window, sampled), top, pool)])


def live_likelihoods(model, windows, folder):
    """The record of a live `Decoder` over windows of ids of at least two each, written to `folder`."""
    positions = sum(len(ids) - 1 for ids in windows)
    with LikelihoodsWriter(folder, model.options.vocab_size, {}, positions, TOP, SAMPLED) as writer:
        for ids in windows:
            writer.append(ids, live_rows(model, ids))
        return writer.close()


def live_compare(model, reference, windows=None):
    """A live `Decoder` against a record, over all its windows or those of some numbers."""
    parts = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for index in range(reference.num_windows) if windows is None else windows:
            window, rows, at = reference.window(index), reference.rows(index), 0
            for logits in _logits(model, window.tolist()):
                after = at + len(logits)
                parts.append(compare(rows[at:after], logits, window[at + 1 : after + 1], pool))
                at = after
    return Compared.joined(parts)


def _logits(model, ids):
    """Logits (P, V), float32, after every token but the last."""
    step = max(1, LOGITS_BYTES // (4 * model.options.vocab_size))
    with evaluating(model):
        inputs = torch.as_tensor(list(ids[:-1]), dtype=torch.long, device=model.device)
        ends = torch.tensor([0, len(inputs)], dtype=torch.int32, device=model.device)
        for hidden in model(inputs, ends).split(step):
            yield model.logits(hidden.float()).float().cpu().numpy()
