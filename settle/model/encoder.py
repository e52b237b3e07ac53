"""BERT encoders (Devlin et al. 2018, arXiv:1810.04805) on torch, read from a GGUF file: trained or frozen.

Legend: B texts, L tokens of the longest of them, W width, H heads, F feed-forward width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settle.base.errors import FormatError
from settle.formats import Weights
from settle.formats.gguf import pooling
from settle.formats.gguf.metadata import number, whole
from settle.model.layers.freezable import FreezableModule

MOST_TOKENS = 1 << 12  # padding included, of a batch that is only read
_OF_LAYER = {
    "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "attention_output",
    "attn_output_norm": "attention_norm", "ffn_up": "up", "ffn_down": "down", "layer_output_norm": "output_norm",
}  # fmt: skip
_NORM = {"token_embd_norm": "norm"}
_TABLES = {"token_embd": "tokens", "position_embd": "positions", "token_types": "types"}


@dataclass(frozen=True)
class EncoderOptions:
    """The sizes of an encoder. takes_first: a text's vector is that of its first token, otherwise the mean of all."""

    vocab_size: int
    context: int
    width: int
    inner: int
    heads: int
    layers: int
    epsilon: float = 1e-12
    takes_first: bool = False


class _Layer(nn.Module):
    """Self-attention and feed-forward, each added to its input and then normalized."""

    def __init__(self, o: EncoderOptions) -> None:
        super().__init__()
        self._heads = o.heads
        self.query, self.key, self.value = (nn.Linear(o.width, o.width) for _ in range(3))
        self.attention_output = nn.Linear(o.width, o.width)
        self.attention_norm = nn.LayerNorm(o.width, o.epsilon)
        self.up, self.down = nn.Linear(o.width, o.inner), nn.Linear(o.inner, o.width)
        self.output_norm = nn.LayerNorm(o.width, o.epsilon)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B, L, W); mask: (B, 1, 1, L), true where there is a token → (B, L, W)."""
        q, k, v = (
            linear(x).unflatten(-1, (self._heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.attention_output(mixed))
        normed: Tensor = self.output_norm(x + self.down(F.gelu(self.up(x))))
        return normed


class Encoder(FreezableModule):
    """Texts to the states of their tokens, and to one vector each."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        o = self.options = options
        self.width = o.width
        self.tokens = nn.Embedding(o.vocab_size, o.width)
        self.positions = nn.Embedding(o.context, o.width)
        self.types = nn.Embedding(2, o.width)
        self.norm = nn.LayerNorm(o.width, o.epsilon)
        self.blocks = nn.ModuleList(_Layer(o) for _ in range(o.layers))

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def states(self, ids: Tensor, mask: Tensor, layers: int | None = None) -> Tensor:
        """Compute ids (B, L), mask (B, L), true at tokens → (B, L, W) behind the first `layers`, or all."""
        positions = self.positions.weight[: ids.shape[1]]
        x: Tensor = self.norm(self.tokens(ids) + positions + self.types.weight[0])
        seen = None if bool(mask.all()) else mask[:, None, None]
        for block in self.blocks[:layers]:
            x = block(x, seen)
        return x

    def vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute ids (B, L), mask (B, L) → (B, W), each of length 1."""
        return self.pooled(self.states(ids, mask), mask)

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool states (B, L, W), mask (B, L) → the texts' vectors (B, W), each of length 1."""
        weight = mask[..., None].to(states.dtype)
        pooled = states[:, 0] if self.options.takes_first else (states * weight).sum(1) / weight.sum(1)
        return F.normalize(pooled, dim=-1)


def padded(rows: Sequence[Sequence[int]] | Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts as ids (B, L), zeros behind their ends, and which of them are tokens (B, L)."""
    texts = [torch.as_tensor(row) for row in rows]
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for place, text in enumerate(texts):
        ids[place, : len(text)] = text
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.to(device)


def gguf_names(layers: int) -> dict[str, str]:
    """Map the tensors of a GGUF file to the parameters of an encoder."""
    stems = dict(_NORM)
    for layer in range(layers):
        stems |= {f"blk.{layer}.{gguf}": f"blocks.{layer}.{ours}" for gguf, ours in _OF_LAYER.items()}
    names = {f"{gguf}.weight": f"{ours}.weight" for gguf, ours in _TABLES.items()}
    return names | {f"{gguf}.{kind}": f"{ours}.{kind}" for gguf, ours in stems.items() for kind in ("weight", "bias")}


def encoder_of_gguf(file: Weights) -> Encoder:
    """Build the encoder of a checked GGUF file, in fp32. Raises FormatError when it is no whole BERT."""
    meta = file.metadata
    if meta.get("general.architecture") != "bert":
        raise FormatError("it is no BERT encoder", "choose an embedder such as minilm")
    layers = whole(meta, "bert.block_count")
    names = gguf_names(layers)
    if missing := next((own for own in names if own not in file.tensors), None):
        raise FormatError(f"the encoder's file has no {missing}", "it is not a whole model")
    found = {ours: torch.tensor(file.tensors[gguf].load()).float() for gguf, ours in names.items()}
    options = EncoderOptions(
        vocab_size=len(found["tokens.weight"]),
        context=len(found["positions.weight"]),
        width=whole(meta, "bert.embedding_length"),
        inner=whole(meta, "bert.feed_forward_length"),
        heads=whole(meta, "bert.attention.head_count"),
        layers=layers,
        epsilon=number(meta, "bert.attention.layer_norm_epsilon"),
        takes_first=pooling(meta) == "cls",
    )
    model = Encoder(options)
    if len(found["types.weight"]) == 1:
        found["types.weight"] = found["types.weight"].repeat(2, 1)
    model.load_state_dict(found)
    return model
