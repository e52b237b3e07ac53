"""A cross-encoder of fewer than 200,000 weights over a frozen encoder: whether a passage answers a question.

The encoder reads question and passage apart, each once however often it is paired; what is trained lets the
question's tokens look at the passage's. Late interaction as in ColBERT (arXiv:2004.12832), read by cross-attention
instead of a sum.

Legend: B pairs, M tokens of a question, N of a passage, W width of the encoder, D width of the reranker, H heads.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settle.model.encoder import MOST_TOKENS, Encoder, padded
from settle.model.layers.freezable import FreezableModule

REMEMBERED = 20_000  # texts whose states are kept: training meets each many times
WIDTH, HEADS, BLOCKS = 64, 4, 2
FIGURES = 3  # of a question's token: its likeness in meaning, in word, and their product
DROPOUT = 0.1
FIRST_FIGURES, FIRST_COSINE, FIRST_BIAS = (1.5, 1.5, 1.5), 8.0, -7.5  # see `_begin_with_likeness`


class _Block(nn.Module):
    """Attention to the passage, among the question's tokens, and a feed-forward, each behind its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.to_passage, self.to_question = _Attention(), _Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, passage: Tensor, asked: Tensor, seen: Tensor) -> Tensor:
        x = x + self.drop(self.to_passage(self.norms[0](x), passage, seen))
        inner = self.norms[1](x)
        x = x + self.drop(self.to_question(inner, inner, asked))
        out: Tensor = x + self.drop(self.down(F.relu(self.up(self.norms[2](x)))))
        return out


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """x (B, M, D), memory (B, N, D), mask (B, N) → (B, M, D)."""
        q, k, v = (
            linear(of).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, of in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Reranker(FreezableModule):
    """Pairs of a question and a passage → logits that the passage answers."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        encoder.requires_grad_(False)
        self._frozen = (encoder,)  # no submodule: its weights are neither trained nor stored
        width = encoder.options.width
        self.of_question, self.of_passage = nn.Linear(2 * width, WIDTH), nn.Linear(width, WIDTH)
        self.of_figures = nn.Linear(FIGURES, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.importance = nn.Linear(WIDTH, 1)
        self.hidden = nn.Linear(WIDTH + FIGURES + 1, WIDTH)
        self.score = nn.Linear(WIDTH, 1)
        self.likeness = nn.Linear(FIGURES + 1, 1)
        self._begin_with_likeness()
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def _begin_with_likeness(self) -> None:
        """Before it has learned anything it ranks as the encoder's cosine and the nearest tokens do."""
        self.score.weight.zero_()
        self.likeness.weight.copy_(torch.tensor([[*FIRST_FIGURES, FIRST_COSINE]]))
        self.likeness.bias.fill_(FIRST_BIAS)

    @property
    def encoder(self) -> Encoder:
        return self._frozen[0]

    @property
    def width(self) -> int:
        """Of what is trained."""
        return WIDTH

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def pairs(self, questions: Sequence[Tensor], passages: Sequence[Tensor]) -> Tensor:
        """Ids of B questions and B passages, with the tokens around them → logits (B,)."""
        asked, question_words, asked_mask = self._read(questions)
        states, passage_words, told_mask = self._read(passages)
        return self.interaction(asked, question_words, asked_mask, states, passage_words, told_mask)

    def interaction(
        self,
        asked: Tensor,
        asked_words: Tensor,
        asked_mask: Tensor,
        states: Tensor,
        told_words: Tensor,
        told_mask: Tensor,
    ) -> Tensor:
        """States and word vectors of questions (B, M, W) and passages (B, N, W), which are tokens where
        their masks (B, M), (B, N) say so → (B,)."""
        figures = self._figures(asked, asked_words, states, told_words, told_mask)
        passage = self.of_passage(states)
        x = self.of_question(torch.cat([asked, asked_words], -1)) + self.of_figures(figures)
        for block in self.blocks:
            x = block(x, passage, asked_mask, told_mask)
        near = (self.encoder.pooled(asked, asked_mask) * self.encoder.pooled(states, told_mask)).sum(-1, keepdim=True)
        return self.conclusion(x, asked_mask, figures, near)

    def conclusion(self, x: Tensor, asked_mask: Tensor, figures: Tensor, near: Tensor) -> Tensor:
        """The question's tokens behind the blocks (B, M, D), their figures and the texts' cosine (B, 1) → (B,)."""
        x = self.norm(x)
        share = self.importance(x).masked_fill(~asked_mask[..., None], -torch.inf).softmax(1)
        likeness = torch.cat([(share * figures).sum(1), near], -1)
        whole = torch.cat([(share * x).sum(1), likeness], -1)
        logits: Tensor = (self.score(F.relu(self.hidden(whole))) + self.likeness(likeness)).squeeze(-1)
        return logits

    def _figures(self, asked: Tensor, asked_words: Tensor, states: Tensor, told_words: Tensor, mask: Tensor) -> Tensor:
        """How near the nearest of the passage's tokens comes to each of the question's, (B, M, FIGURES)."""
        unseen = ~mask[:, None]
        meaning = (F.normalize(asked, dim=-1) @ F.normalize(states, dim=-1).mT).masked_fill(unseen, -1).amax(-1)
        word = (F.normalize(asked_words, dim=-1) @ F.normalize(told_words, dim=-1).mT).masked_fill(unseen, -1).amax(-1)
        return torch.stack([meaning, word, meaning * word], -1)

    @torch.no_grad()
    def _read(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's states and word vectors (B, L, W) of texts, and which are tokens (B, L)."""
        self._remember(texts)
        ids, mask = padded(texts, self.device)
        states = torch.zeros(*ids.shape, self.encoder.options.width, device=self.device)
        for number, text in enumerate(texts):
            states[number, : len(text)] = self._known[text.numpy().tobytes()].to(self.device)
        table = self.encoder.tokens.weight
        return states, table[ids] - table.mean(0), mask

    def _remember(self, texts: Sequence[Tensor]) -> None:
        """Reads texts whose states are not known yet. Those of this batch stay, the longest unused go first."""
        keys = {text.numpy().tobytes(): text for text in texts}
        new = sorted((key for key in keys if key not in self._known), key=lambda key: len(keys[key]))
        for key in keys:
            if key in self._known:
                self._known.move_to_end(key)
        start = 0
        while start < len(new):
            end = start + 1
            while end < len(new) and (end + 1 - start) * len(keys[new[end]]) <= MOST_TOKENS:
                end += 1
            ids, mask = padded([keys[key] for key in new[start:end]], self.encoder.device)
            for key, states in zip(new[start:end], self.encoder.states(ids, mask), strict=True):
                self._known[key] = states[: len(keys[key])].half().cpu()
            start = end
        while len(self._known) > max(REMEMBERED, len(keys)):
            self._known.popitem(last=False)
