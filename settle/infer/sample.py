"""Tokens and probabilities from a live torch model.

S sequences, N tokens of all sequences together, V vocabulary. The model is `model(inputs (N,), cu_seqlens (S+1,))`
→ hidden (N, D) with `model.head` (V, D). Nothing is cached between tokens: sequences are packed into one forward
pass instead, which for a small model costs less than it takes to keep a cache right.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    import torch

    training = model.training
    model.eval()
    try:
        # not inference_mode: the model keeps casts of its weights, and training must be able to use them afterwards
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def logprobs(model: Any, ids: Sequence[int], positions: Sequence[int]) -> Any:
    """Natural log-probabilities (len(positions), V), float32, of the token after each position of one sequence."""
    import torch

    with _evaluating(model):
        device = model.head.device
        inputs = torch.as_tensor(list(ids), dtype=torch.long, device=device)
        ends = torch.tensor([0, len(ids)], dtype=torch.int32, device=device)
        hidden = model(inputs, ends)[torch.as_tensor(list(positions), device=device)]
        return (hidden.float() @ model.head.float().T).log_softmax(-1)


def greedy(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> tuple[list[list[int]], list[list[Any]]]:
    """The likeliest continuation of each prompt, `num_tokens` long whatever comes (an end of text too).

    Returns ids per prompt and, per prompt, the log-probabilities (V,) each was chosen from.
    """
    import torch

    sequences = [list(p) for p in prompts]
    chosen: list[list[int]] = [[] for _ in prompts]
    seen: list[list[Any]] = [[] for _ in prompts]
    with _evaluating(model):
        for _ in range(num_tokens):
            for row, distribution in enumerate(_next(model, sequences)):
                token = int(distribution.argmax())
                sequences[row].append(token)
                chosen[row].append(token)
                seen[row].append(distribution)
    assert all(torch.isfinite(d).all() for row in seen for d in row), "the live model gives NaN"
    return chosen, seen


def generate(
    model: Any,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    context: int | None = None,
) -> Iterator[int]:
    """Ids of an answer, one by one; temperature 0 is greedy. Ends after max_tokens or before a stop id.

    context: the most tokens the model may look back on; older ones drop out of its sight.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(max_tokens):
        with _evaluating(model):
            (distribution,) = _next(model, [ids[-context:] if context else ids])
        token = _draw(distribution.cpu(), temperature, top_p, generator)
        if token in stop_ids:
            return
        ids.append(token)
        yield token


def _next(model: Any, sequences: list[list[int]]) -> Any:
    """Log-probabilities (S, V) after the last token of each sequence, from one packed pass."""
    import torch

    device = model.head.device
    ends = torch.tensor([0] + [len(s) for s in sequences]).cumsum(0)
    inputs = torch.tensor([t for s in sequences for t in s], dtype=torch.long, device=device)
    hidden = model(inputs, ends.to(device, torch.int32))[(ends[1:] - 1).to(device)]
    return (hidden.float() @ model.head.float().T).log_softmax(-1)


def _draw(logp: Any, temperature: float, top_p: float, generator: Any) -> int:
    import torch

    if temperature <= 0:
        return int(logp.argmax())
    weights, order = (logp / temperature).softmax(-1).sort(descending=True)
    # the smallest set of tokens that holds top_p of the mass: at least the first one
    weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0.0)
    return int(order[torch.multinomial(weights, 1, generator=generator)])
