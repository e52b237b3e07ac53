"""A trained judge of whether a passage answers a question: a small cross-encoder over all-MiniLM-L6-v2.

`settle/model/reranker.py` is the same on torch, where it is trained; here it runs on numpy, which loads at once. Its
weights lie in `answer_judge.safetensors`, made by `recipes/judge`; docs/judge.md is its card.

Legend: B passages, M tokens of the question, N of a passage, W width of the encoder, D width of the judge.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats import Weights
from settle.formats.gguf import read_gguf
from settle.infer.token_states import TokenStates, layer_norm
from settle.library.resolve import resolve_whole
from settle.retrieve.index.catalogue.records import Passage
from settle.retrieve.index.collection import Collection

ENCODER = "minilm"  # whose states it was trained on
WEIGHTS = Path(__file__).with_name("answer_judge.safetensors")
QUESTION_TOKENS, HEADING_TOKENS, TEXT_TOKENS = 64, 24, 96  # that are read of each, at most
STRIDE = 16  # tokens from one window of a long passage to the next
REMEMBERED = 128  # passages whose states are kept
HEADS = 4
_NORM_EPSILON = np.float32(1e-5)
_UNSEEN = np.float32(-1e9)
_FIRST_WORD = 1996  # WordPiece's ids from here on are words, the most frequent first


class AnswerJudge:
    """Logits that passages answer a question."""

    def __init__(self, encoder: Weights, weights: Path = WEIGHTS) -> None:
        """encoder: the GGUF file whose states it reads. weights: its own."""
        self._tokenizer = fast_tokenizer(encoder.metadata)
        self._encoder = TokenStates(encoder)
        self._w = {name: np.asarray(weight, np.float32) for name, weight in load_file(weights).items()}
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def logits(self, question: str, passages: Sequence[Passage]) -> np.ndarray:
        """float32 (B,): above 0 where an answer is likelier than none."""
        if not passages:
            return np.empty(0, np.float32)
        *text, closing = self._tokenizer.encode(question).ids
        asked = [*text[: QUESTION_TOKENS - 1], closing]
        windows = [self._window(asked, passage) for passage in passages]
        question_states, question_words, _ = self._encoder.read([asked])
        states, words, mask = self._read(windows)
        return self._interaction(question_states, question_words, states, words, mask)

    def _window(self, asked: Sequence[int], passage: Passage) -> list[int]:
        """A passage's ids with its headings; of a long one the part with most of the question's rare words."""
        opening, *text, closing = self._tokenizer.encode(passage.text).ids
        headings = self._tokenizer.encode(" › ".join(passage.headings), add_special_tokens=False).ids
        if len(text) > TEXT_TOKENS:
            rare = {i: np.log1p(i - _FIRST_WORD) for i in asked if i > _FIRST_WORD}
            starts = range(0, len(text) - TEXT_TOKENS + STRIDE, STRIDE)
            best = max(starts, key=lambda s: sum(rare[i] for i in rare.keys() & set(text[s : s + TEXT_TOKENS])))
            text = text[best : best + TEXT_TOKENS]
        return [opening, *headings[-HEADING_TOKENS:], *text, closing]

    def _read(self, windows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States and word vectors (B, N, W), and which places hold a token (B, N)."""
        keys = [np.array(ids, np.int32).tobytes() for ids in windows]
        new = {key: ids for key, ids in zip(keys, windows, strict=True) if key not in self._known}
        if new:
            states, _, _ = self._encoder.read(list(new.values()))
            self._known |= {
                key: row[: len(ids)].astype(np.float16) for (key, ids), row in zip(new.items(), states, strict=True)
            }
        longest = max(map(len, windows))
        out = np.zeros((len(windows), longest, self._encoder.words.shape[1]), np.float32)
        words, mask = np.zeros_like(out), np.zeros((len(windows), longest), bool)
        for row, (key, ids) in enumerate(zip(keys, windows, strict=True)):
            self._known.move_to_end(key)
            out[row, : len(ids)], words[row, : len(ids)] = self._known[key], self._encoder.words[ids]
            mask[row, : len(ids)] = True
        while len(self._known) > max(REMEMBERED, len(keys)):
            self._known.popitem(last=False)
        return out, words, mask

    def _interaction(
        self, asked: np.ndarray, asked_words: np.ndarray, states: np.ndarray, told_words: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """asked, asked_words (1, M, W); states, told_words (B, N, W), tokens where `mask` (B, N) → logits (B,)."""
        unseen = np.where(mask, np.float32(0), _UNSEEN)[:, None]
        meaning = (_unit(asked) @ _unit(states).transpose(0, 2, 1) + unseen).max(-1)
        word = (_unit(asked_words) @ _unit(told_words).transpose(0, 2, 1) + unseen).max(-1)
        figures = np.stack([meaning, word, meaning * word], -1)
        passage = self._linear(states, "of_passage")
        question = self._linear(np.concatenate([asked, asked_words], -1), "of_question")
        x = question + self._linear(figures, "of_figures")
        block = 0
        while f"blocks.{block}.up.weight" in self._w:
            at = f"blocks.{block}."
            x = x + self._attention(self._norm(x, f"{at}norms.0"), passage, unseen[:, None], f"{at}to_passage")
            inner = self._norm(x, f"{at}norms.1")
            x = x + self._attention(inner, inner, np.float32(0), f"{at}to_question")
            x = x + self._linear(np.maximum(self._linear(self._norm(x, f"{at}norms.2"), f"{at}up"), 0), f"{at}down")
            block += 1
        x = self._norm(x, "norm")
        share = _softmax(self._linear(x, "importance").transpose(0, 2, 1)).transpose(0, 2, 1)
        lengths = mask.sum(1, keepdims=True)
        near = (_unit(asked.mean(1)) * _unit((states * mask[..., None]).sum(1) / lengths)).sum(-1, keepdims=True)
        likeness = np.concatenate([(share * figures).sum(1), near], -1)
        whole = np.concatenate([(share * x).sum(1), likeness], -1)
        learned = self._linear(np.maximum(self._linear(whole, "hidden"), 0), "score")
        logits: np.ndarray = (learned + self._linear(likeness, "likeness"))[:, 0]
        return logits

    def _attention(self, x: np.ndarray, memory: np.ndarray, unseen: np.ndarray | np.float32, at: str) -> np.ndarray:
        """x (B, M, D), memory (B, N, D) → (B, M, D)."""
        q, k, v = (
            self._linear(of, f"{at}.{name}").reshape(*of.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
            for name, of in (("query", x), ("key", memory), ("value", memory))
        )
        scores = q @ k.transpose(0, 1, 3, 2) * np.float32(q.shape[-1] ** -0.5) + unseen
        return self._linear((_softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape), f"{at}.out")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        out: np.ndarray = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return out

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"], _NORM_EPSILON)


def answer_judge(collection: Collection) -> AnswerJudge | None:
    """The judge, loaded once; None for a collection whose embedder is another, which may be in another language."""
    if collection.vectors.config.embedder["name"] != ENCODER:
        return None
    return _opened(resolve_whole(ENCODER).source.path)


@lru_cache(1)
def _opened(path: Path) -> AnswerJudge:
    return AnswerJudge(read_gguf(path))


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))
    return unit


def _softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    risen = np.exp(x - x.max(-1, keepdims=True))
    shares: np.ndarray = risen / risen.sum(-1, keepdims=True)
    return shares
