"""Records of a live torch model's distributions, made as `Scorer` makes them of a file."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from settle.data.distributions import SAMPLED, TOP, Rows, draws, sizes, summarise
from settle.data.likelihoods import LikelihoodsWriter
from settle.infer.live.sample import logprobs


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
