"""Linear recurrences over matrices, a chunk of tokens at a time, in matrix products (arXiv:2405.21060, 2412.06464).

Letters: B sequences, H heads, T tokens, C chunks of t tokens, k width of a key, v of a value.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # tokens: fewer make more steps, more make more products within a chunk


def scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rate: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute S = αS + k vᵀ token by token, and read Sᵀq → (B, H, T, v) and the last S (B, H, k, v).

    q, k (B, H, T, k), v (B, H, T, v), log_decay (B, H, T): ln α. rate (B, H, T): β of the delta rule, which writes
    β (v - αSᵀk) in v's place. state: S before, zero by default.
    """
    length, size = q.shape[2], min(CHUNK, q.shape[2])
    q, k, v = (pad(x, (0, 0, 0, -length % size)).unflatten(2, (-1, size)) for x in (q, k, v))
    total = pad(log_decay, (0, -length % size)).unflatten(2, (-1, size)).cumsum(-1)  # (B, H, C, t)
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
    since, whole = total.exp().unsqueeze(-1), total[..., -1:].exp().unsqueeze(-1)
    scores = (q @ k.transpose(-1, -2)) * between
    reads, writes = q * since, (k * (total[..., -1:] - total).exp().unsqueeze(-1)).transpose(-1, -2)
    seen = None
    if rate is not None:
        share = pad(rate, (0, -length % size)).unflatten(2, (-1, size)).unsqueeze(-1)
        written = k * share
        both = torch.cat([v * share, written * since], -1)
        both = torch.linalg.solve_triangular(
            (written @ k.transpose(-1, -2)) * between, both, upper=False, unitriangular=True
        )
        v, seen = both.split([v.shape[-1], k.shape[-1]], -1)
        reads = reads - scores @ seen
    out = scores @ v
    state = v.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state
    parts = []
    for chunk in range(out.shape[2]):
        parts.append(reads[:, :, chunk] @ state)
        new = v[:, :, chunk] if seen is None else v[:, :, chunk] - seen[:, :, chunk] @ state
        state = state * whole[:, :, chunk] + writes[:, :, chunk] @ new
    out = out + torch.stack(parts, 2)
    return out.flatten(2, 3)[:, :, :length], state
