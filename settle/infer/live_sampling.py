"""Tokens and probabilities from a live torch model.

N tokens, V vocabulary. The model is `model(inputs (N,), cu_seqlens (2,))` → hidden (N, D), then `model.logits` (N, V).
Nothing is cached between tokens: this is for evaluating a model in training; the exported file answers faster.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from settle.model.decoder import Decoder


ROWS = 32  # a kernel is compiled, and kept for a while, for every number of rows: of texts that grow, for these steps


@contextlib.contextmanager
def evaluating(model: "Decoder") -> Iterator[None]:
    """Switch to evaluation mode without gradients, as long as this lasts."""
    import torch

    training = model.training
    model.eval()
    try:
        # not inference_mode: the model keeps casts of its weights, and training must be able to use them afterwards
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def logprobs(model: "Decoder", ids: Sequence[int], positions: Sequence[int], filled: bool = False) -> "Tensor":
    """Natural log-probabilities (len(positions), V), float32, of the token after each position of one sequence.

    filled: further tokens at the end, which none before them sees, make the number of rows a multiple of ROWS; in the
    same segment, since a kernel is compiled for every length of one.
    """
    import torch

    with evaluating(model):
        device = model.device
        filling = -len(ids) % ROWS if filled else 0
        inputs = torch.tensor([*ids, *[ids[-1]] * filling], dtype=torch.long).to(device)
        # a model that turns long segments by other angles (longrope) must not see a longer one
        apart = any(layer.rope.long_after is not None for layer in model.options.layers)
        bounds = {0, len(ids), len(inputs)} if apart else {0, len(inputs)}
        ends = torch.tensor(sorted(bounds), dtype=torch.int32).to(device)
        hidden = model(inputs, ends)[torch.tensor(list(positions)).to(device)]
        return model.logits(hidden.float()).log_softmax(-1)


def generate(
    model: "Decoder",
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    context: int | None = None,
) -> Iterator[int]:
    """Ids of an answer, one by one; temperature 0 is greedy. Ends after max_tokens or before a stop id.

    context: the most tokens that the model attends to; older ones are left out.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(max_tokens):
        window = ids[-context:] if context else ids
        (distribution,) = logprobs(model, window, [len(window) - 1], filled=True)
        token = _draw(distribution.cpu(), temperature, top_p, generator)
        if token in stop_ids:
            return
        ids.append(token)
        yield token


def _draw(logp: "Tensor", temperature: float, top_p: float, generator: "Generator") -> int:
    import torch

    if temperature <= 0:
        return int(logp.argmax())
    weights, order = (logp / temperature).softmax(-1).sort(descending=True)
    # the smallest set of tokens that holds top_p of the mass: at least the first one
    weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0.0)
    return int(order[torch.multinomial(weights, 1, generator=generator)])
