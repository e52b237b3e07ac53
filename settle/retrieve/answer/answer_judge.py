"""A trained judge of whether a passage answers a question, and where: a cross-encoder over all-MiniLM-L6-v2.

`settle/model/encoder.py` has the same on torch, where it is trained; here it runs on numpy, which loads at once. Its
weights lie in `answer_judge.safetensors`, made by bench/judge.py; docs/judge.md is its card.

Legend: B passages, M tokens of the question, N of a passage, W width of the encoder.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.token_states import TokenStates, gelu
from settle.library.resolve import resolve_whole
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.collection import Collection

ENCODER = "minilm"  # whose states it was trained on
WEIGHTS = Path(__file__).with_name("answer_judge.safetensors")
QUESTION_TOKENS, HEADING_TOKENS, TEXT_TOKENS = 48, 24, 160  # that are read of each, at most
STRIDE = 16  # tokens from one window of a long passage to the next
SCALE = "_scale"  # behind the name of a matrix in int8: what its rows are multiplied by


_FIRST_WORD = 1996  # WordPiece's ids from here on are words, the most frequent first


class JudgeReading(NamedTuple):
    """The judge's reading of one passage."""

    logit: float  # above 0 where an answer is likelier than none
    at: int  # the character of the passage's text where the evidence for it is greatest


UNREAD: Mapping[int, JudgeReading] = MappingProxyType({})  # by the passage's id, where there is no judge


class TokenWindow(NamedTuple):
    """The tokens of a passage that are read."""

    ids: list[int]
    places: list[int]  # the first character of each in the text, -1 of others


class AnswerJudge:
    """Reads passages for a question."""

    def __init__(self, encoder: Weights, weights: Path = WEIGHTS) -> None:
        """Load a judge. encoder: the GGUF file whose states it reads; weights: its own."""
        self._tokenizer = fast_tokenizer(encoder.metadata)
        self._w = _dense(load_file(weights))
        self._encoder = TokenStates(encoder, self._w)
        self._apart = self._encoder.layers // 3  # as `layers_apart` in settle/model/encoder.py

    def read(self, question: str, passages: Sequence[Passage]) -> list[JudgeReading]:
        """Return the reading of each passage."""
        if not passages:
            return []
        asked = self.question_ids(question)
        windows = [self.window(asked, passage) for passage in passages]
        logits, shares = self._scores(asked, [window.ids for window in windows])
        return [
            JudgeReading(
                logit, max(zip(share, window.places, strict=False), key=lambda pair: pair[0] * (pair[1] >= 0))[1]
            )
            for window, logit, share in zip(windows, logits.tolist(), shares.tolist(), strict=True)
        ]

    def question_ids(self, question: str) -> list[int]:
        """Return the ids of a question, cut to the longest that is read."""
        *text, closing = self._tokenizer.encode(question).ids
        return [*text[: QUESTION_TOKENS - 1], closing]

    def window(self, asked: Sequence[int], passage: Passage) -> TokenWindow:
        """Return a passage with its headings; of a long one the part whose words come nearest to the question's."""
        encoded = self._tokenizer.encode(passage.text)
        opening, *text, closing = encoded.ids
        places = [start for start, _ in encoded.offsets[1:-1]]
        headings = self._tokenizer.encode(" › ".join(passage.headings), add_special_tokens=False).ids[-HEADING_TOKENS:]
        start = 0
        if len(text) > TEXT_TOKENS:
            words = self._encoder.words
            like = _unit(words(asked[1:-1])) @ _unit(words(text)).T
            rare = np.log1p(np.maximum(np.array(asked[1:-1]) - _FIRST_WORD, 0))
            starts = [*range(0, len(text) - TEXT_TOKENS, STRIDE), len(text) - TEXT_TOKENS]
            start = max(starts, key=lambda s: float(rare @ like[:, s : s + TEXT_TOKENS].max(1)))
        text, places = text[start : start + TEXT_TOKENS], places[start : start + TEXT_TOKENS]
        return TokenWindow([opening, *headings, *text, closing], [*[-1] * (1 + len(headings)), *places, -1])

    def _scores(self, asked: Sequence[int], windows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (B,), and the share that each token of a passage has of its evidence (B, N)."""
        question, asked_mask = self._encoder.read([asked], self._apart)
        passage, told_mask = self._encoder.read(windows, self._apart)
        words = self._encoder.words
        told_words = np.zeros_like(passage)
        for row, ids in enumerate(windows):
            told_words[row, : len(ids)] = words(ids)
        likes = [
            np.where(told_mask[:, None], _unit(of_asked) @ _unit(of_told).transpose(0, 2, 1), np.float32(-1))
            for of_asked, of_told in ((words(asked)[None], told_words), (question, passage))
        ]
        had, found = np.stack([like.max(2) for like in likes], -1), np.stack([like.max(1) for like in likes], -1)
        segments = self._w["segments"]
        x = np.concatenate(
            [
                question + segments[0] + self._linear(had, "figures.0"),
                passage + segments[1] + self._linear(found, "figures.1"),
            ],
            1,
        )
        mask = np.concatenate([np.broadcast_to(asked_mask, (len(windows), len(asked))), told_mask], 1)
        x = self._encoder.through(x, mask, range(self._apart, self._encoder.layers))
        of_asked, of_told = x[:, : len(asked)], x[:, len(asked) :]
        weights = self._shares(of_asked, mask[:, : len(asked)], 0), self._shares(of_told, told_mask, 1)
        evidence = [(w[..., None] * of).sum(1) for w, of in zip(weights, (of_asked, of_told), strict=True)]
        learned = self._linear(gelu(self._linear(np.concatenate(evidence, -1), "hidden")), "score")
        return (learned + self._linear((weights[0][..., None] * had).sum(1), "likeness"))[:, 0], weights[1]

    def _shares(self, x: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
        weight = np.where(mask, self._linear(x, f"importance.{side}")[..., 0], -np.inf)
        shares: np.ndarray = np.exp(weight - weight.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return shares

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        out: np.ndarray = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return out


def answer_judge(collection: Collection) -> AnswerJudge | None:
    """Return the judge, loaded once; None for a collection with another embedder, which may be in another language."""
    if collection.vectors.config.embedder["name"] != ENCODER:
        return None
    return _opened(resolve_whole(ENCODER).source.path)


@lru_cache(1)
def _opened(path: Path) -> AnswerJudge:
    return AnswerJudge(read_gguf(path))


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))
    return unit


def _dense(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights as float32: matrices in int8 times the scales of their rows."""
    return {
        name: weight.astype(np.float32) * (stored[name + SCALE][:, None] if name + SCALE in stored else np.float32(1))
        for name, weight in stored.items()
        if not name.endswith(SCALE)
    }
