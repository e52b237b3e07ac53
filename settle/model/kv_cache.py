"""Sequences that grow token by token: each layer keeps what it needs of the earlier ones, so a step reads one token.

Attention keeps keys and values; a recurrence its state.

Letters: B sequences, N tokens of all, H query heads, K key/value heads, d head width, M most tokens of a sequence,
V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from settle.model.layers.attention import attention_over
from settle.model.layers.packed_sequences import Packing, Recurrent, RotationTable, Scoring, State
from settle.model.layers.transfer import to_device

if TYPE_CHECKING:
    from settle.model.decoder import Decoder


class Growing(Packing):
    """A packed batch that goes through the decoder once, and then one further token of each sequence at a time.

    cu_seqlens (B+1,): of what is there at first. room: how many tokens a sequence may grow by.
    """

    attends_itself = True

    def __init__(self, cu_seqlens: Tensor, room: int) -> None:
        super().__init__(cu_seqlens)
        self.lengths = cu_seqlens.long().diff()
        self.most = self.longest + room
        self._kept: list[State] = []  # of each mixer: keys and values (B, K, M, d), or the state of a recurrence
        self._layer = 0
        self._is_first = True

    def read(self) -> None:
        """All layers have read the batch: the next tokens follow it."""
        if not self._is_first:
            self.lengths = self.lengths + 1
        self._is_first, self._layer = False, 0

    def attend(self, qkv: Tensor, table: RotationTable, scoring: Scoring, bias: Tensor | None) -> Tensor:
        """Attend; qkv (N, (H + 2K)·d) of the whole batch at first, later (B, …) of the newest tokens."""
        dtype, window, soft_cap = qkv.dtype, scoring.window, scoring.soft_cap
        if scoring.in_float32:
            qkv = qkv.to(table.dtype) if bias is None else qkv + bias
        turned = (table.heads + table.kv_heads) * table.head_dim
        positions = self.positions if self._is_first else self.lengths
        by_head = _turned(qkv[:, :turned], table.turn(self.most)[positions])
        values = qkv[:, turned:].view(-1, table.kv_heads, table.head_dim)
        if self._is_first:
            self._keep(by_head[:, table.heads :], values)
            return attention_over(qkv, self, table, scoring).to(dtype)
        keys, past = self._kept[self._layer]
        self._layer += 1
        at = torch.arange(len(qkv), device=qkv.device)
        keys[at, :, self.lengths], past[at, :, self.lengths] = by_head[:, table.heads :], values
        query = by_head[:, : table.heads].view(len(qkv), table.kv_heads, -1, table.head_dim)
        scores = query @ keys.transpose(2, 3)
        if soft_cap is not None:
            scores = torch.tanh(scores / soft_cap) * soft_cap
        place = torch.arange(self.most, device=qkv.device)
        unseen = place > self.lengths.unsqueeze(1)
        if window is not None:
            unseen = unseen | (place <= self.lengths.unsqueeze(1) - window)
        scores = scores.masked_fill(unseen[:, None, None], float("-inf"))
        if scoring.sinks is not None:
            of_heads = scoring.sinks.to(scores.dtype).view(table.kv_heads, -1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, of_heads], -1)
        return (torch.softmax(scores, -1)[..., : self.most] @ past).flatten(1).to(dtype)

    def recur(self, recurrence: Recurrent, rows: Tensor) -> Tensor:
        """Mix rows (N, O) of the whole batch at first, later (B, O) of the newest tokens."""
        weights = recurrence.weights()
        if self._is_first:
            read = [recurrence.mix(segment.unsqueeze(0), weights) for segment in rows.split(self.lengths.tolist())]
            states = zip(*(state for _, state in read), strict=True)
            self._kept.append(tuple(torch.cat(tensors) for tensors in states))
            return torch.cat([out.squeeze(0) for out, _ in read])
        out, self._kept[self._layer] = recurrence.mix(rows.unsqueeze(1), weights, self._kept[self._layer])
        self._layer += 1
        return out.squeeze(1)

    def _keep(self, keys: Tensor, values: Tensor) -> None:
        """keys, values (N, K, d) of a layer, each sequence at the beginning of its own room."""
        sequence = torch.arange(len(self.lengths), device=self.device).repeat_interleave(
            self.lengths, output_size=self.num_tokens
        )
        rooms = []
        for rows in (keys, values):
            room = rows.new_zeros(len(self.lengths), rows.shape[1], self.most, rows.shape[2])
            room[sequence, :, self.positions] = rows
            rooms.append(room)
        self._kept.append((rooms[0], rooms[1]))


def _turned(rows: Tensor, turn: Tensor) -> Tensor:
    """Turn rows (N, n·d) by turn (N, n, d/2) complex → (N, n, d) in the type of `rows`."""
    pairs = torch.view_as_complex(rows.to(turn.real.dtype).view(*turn.shape, 2))
    return torch.view_as_real(pairs * turn).flatten(2).to(rows.dtype)


@torch.no_grad()
def continued(
    model: "Decoder", prompts: Sequence[Tensor], lengths: Sequence[int], stops: Sequence[int], temperature: float = 1.0
) -> list[Tensor]:
    """Tokens drawn behind each prompt, at most `lengths` of them, the last one a stop if one was drawn.

    prompts: ids (≥ 1,) each. Draws come from torch's generator, so its seed decides them. temperature 0: the likeliest.
    """
    device = model.device
    bounds = to_device(torch.tensor([0, *map(len, prompts)]).cumsum(0).to(torch.int32), device)
    growing = Growing(bounds, max(lengths))
    last = model(torch.cat(list(prompts)), growing)[bounds[1:].long() - 1]
    cast, _ = model.head_operands()
    wanted = to_device(torch.tensor(list(lengths)), device)
    ends = to_device(torch.tensor(list(stops), dtype=torch.int64), device)
    drawn, counts = [], torch.zeros_like(wanted)
    going = wanted > 0
    is_going = any(length > 0 for length in lengths)
    while is_going:
        growing.read()
        token = _drawn(last @ cast.t(), model.options.logit_soft_cap, temperature)
        drawn.append(token)
        counts += going
        going = going & (counts < wanted) & ~torch.isin(token, ends)
        is_going = bool(going.any())
        if is_going:
            last = model(token, growing)
    every = torch.stack(drawn, 1) if drawn else wanted.new_zeros(len(wanted), 0)
    return [row[:count] for row, count in zip(every, counts.tolist(), strict=True)]


def _drawn(logits: Tensor, soft_cap: float | None, temperature: float) -> Tensor:
    """Draw from logits (B, V) → ids (B,)."""
    if not temperature:
        return logits.argmax(-1)
    scores = logits.float()
    if soft_cap is not None:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    return torch.multinomial(torch.softmax(scores / temperature, -1), 1).squeeze(1)
