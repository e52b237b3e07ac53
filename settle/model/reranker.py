"""A cross-encoder over the layers of an encoder: whether a passage answers a question, and where.

The first layers of the encoder read question and passage apart and stay as they are, so that their states can be kept;
the others read both together and are trained (arXiv:1901.04085; layers apart first: PreTTR, arXiv:2004.14255). Behind
them each of the passage's tokens has a share of the evidence, and the answer is judged by the shared mean.

Legend: B pairs, M tokens of a question, N of a passage, W width of the encoder.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settle.model.encoder import Encoder, gguf_names, padded
from settle.model.layers.freezable import FreezableModule

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


class Reranker(FreezableModule):
    """Pairs of a question and a passage → logits that the passage answers."""

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

    def pairs(self, questions: Sequence[Tensor], passages: Sequence[Tensor]) -> Tensor:
        """Ids of B questions and B passages, with the tokens around them → logits (B,)."""
        return self.read(questions, passages)[0]

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
