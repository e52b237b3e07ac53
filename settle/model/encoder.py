"""BERT encoders (Devlin et al. 2018, arXiv:1810.04805) on torch, read from a GGUF file, and the reranker over one.

Legend: B texts, L tokens of the longest of them, W width, H heads, F feed-forward width, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settle.base.errors import FormatError
from settle.formats import Weights
from settle.formats.gguf import pooling
from settle.formats.gguf.metadata import number, whole
from settle.model.encoders import PairScorer, TextEncoder

MOST_TOKENS = 1 << 12  # padding included, of a batch that is only read
_OF_LAYER = {
    "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "attention_output",
    "attn_output_norm": "attention_norm", "ffn_up": "up", "ffn_down": "down", "layer_output_norm": "output_norm",
}  # fmt: skip
_NORM = {"token_embd_norm": "norm"}
_TABLES = {"token_embd": "tokens", "position_embd": "positions", "token_types": "types"}


@dataclass(frozen=True)
class EncoderOptions:
    """The sizes of an encoder.

    takes_first: a text's vector is that of its first token, otherwise the mean of all. types: kinds of segments.
    position_offset: the row of the first token's position.
    """

    vocab_size: int
    context: int
    width: int
    inner: int
    heads: int
    layers: int
    epsilon: float = 1e-12
    takes_first: bool = False
    types: int = 2
    position_offset: int = 0


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


class Encoder(TextEncoder):
    """A BERT encoder."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__(options.width)
        o = self.options = options
        self.pooling = "cls" if o.takes_first else "mean"
        self.tokens = nn.Embedding(o.vocab_size, o.width)
        self.positions = nn.Embedding(o.context, o.width)
        self.types = nn.Embedding(o.types, o.width)
        self.norm = nn.LayerNorm(o.width, o.epsilon)
        self.blocks = nn.ModuleList(_Layer(o) for _ in range(o.layers))

    def states(self, ids: Tensor, mask: Tensor, layers: int | None = None, segments: Tensor | None = None) -> Tensor:
        """Compute as `TextEncoder.states`."""
        start = self.options.position_offset
        positions = self.positions.weight[start : start + ids.shape[1]]
        kinds = self.types.weight[0] if segments is None or self.options.types < 2 else self.types(segments)
        x: Tensor = self.norm(self.tokens(ids) + positions + kinds)
        seen = None if bool(mask.all()) else mask[:, None, None]
        for block in self.blocks[:layers]:
            x = block(x, seen)
        return x


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


# --- a cross-encoder over the layers of an encoder ---

HIDDEN = 128
FIGURES = 2  # of a token: its likeness to the nearest of the other text, as a word and in its sentence
FIRST_LIKENESS, FIRST_BIAS = 3.0, -3.0  # it begins by how much of the question the passage has
BEGIN = 0.01  # spread of the first shares' weights: all tokens share nearly alike


def file_names(layers: int) -> dict[str, str]:
    """Map a reranker's parameters that are named as an encoder's are in GGUF to their names in its file.

    The encoder has so many `layers`; other parameters keep their names.
    """
    first = layers_apart(layers)
    ours = {own: gguf for gguf, own in gguf_names(layers).items() if own.startswith("blocks.")}
    return {
        f"blocks.{number}.{rest}": ours[f"blocks.{first + number}.{rest}"]
        for number in range(layers - first)
        for rest in (own.split(".", 2)[2] for own in ours if own.startswith("blocks.0."))
    }


def layers_apart(layers: int) -> int:
    """How many of an encoder's layers read question and passage apart."""
    return layers // 3


class Reranker(PairScorer):
    """Pairs of a question and a passage → logits that the passage answers.

    The first layers of the encoder read question and passage apart and stay as they are, so that their states can be
    kept; the others read both together and are trained (arXiv:1901.04085; layers apart first: PreTTR,
    arXiv:2004.14255). Behind them each of the passage's tokens has a share of the evidence, and the answer is judged by
    the shared mean. Here B pairs, M tokens of a question, N of a passage.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        encoder.requires_grad_(False)
        self._frozen = (encoder,)  # no submodule: its weights are neither trained nor stored
        self.width = width = encoder.options.width
        self.blocks = copy.deepcopy(encoder.blocks[layers_apart(len(encoder.blocks)) :]).requires_grad_(True)
        self.segments = nn.Parameter(torch.zeros(2, width))  # added to the question's tokens, and to the passage's
        self.figures = nn.ModuleList(nn.Linear(FIGURES, width) for _ in range(2))  # likewise
        importance = [nn.Linear(width, 1) for _ in range(2)]
        self.hidden, self.score = nn.Linear(2 * width, HIDDEN), nn.Linear(HIDDEN, 1)
        self.likeness = nn.Linear(FIGURES, 1)
        for linear in importance:
            nn.init.normal_(linear.weight, std=BEGIN)
        self.importance = nn.ModuleList(importance)
        nn.init.zeros_(self.score.weight)
        nn.init.constant_(self.likeness.weight, FIRST_LIKENESS / FIGURES)
        nn.init.constant_(self.likeness.bias, FIRST_BIAS)

    @property
    def encoder(self) -> Encoder:
        return self._frozen[0]

    @property
    def device(self) -> torch.device:
        return self.segments.device

    def pairs(self, firsts: Sequence[Tensor], seconds: Sequence[Tensor]) -> Tensor:
        """Ids of B questions and B passages, with the tokens around them → logits (B,)."""
        return self.read(firsts, seconds)[0]

    def read(self, questions: Sequence[Tensor], passages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute logits (B,), and the logarithm of each passage token's share of the evidence (B, N)."""
        asked, asked_mask = padded(questions, self.device)
        shown, shown_mask = padded(passages, self.device)
        sides = [self._apart(asked, asked_mask), self._apart(shown, shown_mask)]
        masks = (asked_mask, shown_mask)
        figures = _figures(sides[0], sides[1], shown_mask), _figures(sides[1], sides[0], asked_mask)
        x = torch.cat(
            [
                states + segment + of_figures(own)
                for (_, states), segment, of_figures, own in zip(
                    sides, self.segments, self.figures, figures, strict=True
                )
            ],
            1,
        )
        seen = torch.cat(masks, 1)[:, None, None]
        for block in self.blocks:
            x = block(x, seen)
        parts = x.split([asked.shape[1], shown.shape[1]], 1)
        of_asked, of_shown = (
            importance(part)[..., 0].masked_fill(~mask, -torch.inf).log_softmax(-1)
            for importance, part, mask in zip(self.importance, parts, masks, strict=True)
        )
        evidence = [
            (share.exp()[..., None] * part).sum(1) for share, part in ((of_asked, parts[0]), (of_shown, parts[1]))
        ]
        had = (of_asked.exp()[..., None] * figures[0]).sum(1)
        learned = self.score(F.gelu(self.hidden(torch.cat(evidence, -1))))
        logits: Tensor = (learned + self.likeness(had))[:, 0]
        return logits, of_shown

    @torch.no_grad()
    def _apart(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's word vector, centred, and its state behind the layers that read one text, (B, L, W)."""
        table = self.encoder.tokens.weight
        return table[ids] - table.mean(0), self.encoder.states(ids, mask, layers_apart(len(self.encoder.blocks)))


def _figures(of: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Compute how like each token (B, L, W) is to the nearest one of the other text → cosines (B, L, FIGURES).

    The other text has tokens where `mask` (B, K) says so.
    """
    unseen = ~mask[:, None]
    likes = (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT for a, b in zip(of, other, strict=True))
    return torch.stack([like.masked_fill(unseen, -1).amax(-1) for like in likes], -1)
