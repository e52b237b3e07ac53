"""The tokenizer of a model that others trained, from a GGUF file's metadata or a `tokenizer.json`.

Its ids are those of llama.cpp on the same file, for every text: whoever serves the model later reads the same tokens
as it was tuned on. There are two kinds, by llama.cpp's names: `gpt2` merges bytes inside words, `llama` (SentencePiece)
merges characters, spaces written as ▁.
"""

import heapq
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from settle.data.tokenizer.byte_characters import BYTE_CHARACTERS
from settle.data.tokenizer.pre_tokenizers import words
from settle.data.tokenizer.special_tokens import Finder
from settle.data.tokenizer.token_types import USER_DEFINED
from settle.data.tokenizer.tokenizer_files import FILES, read, write
from settle.data.tokenizer.vocabulary import SPACE, Metadata, Vocabulary

# a word is remembered with its ids; a longer one is hardly ever met twice
MAX_REMEMBERED, LONGEST_REMEMBERED = 200_000, 64


class PretrainedTokenizer(Vocabulary):
    """Encodes and decodes as the model's file says. path: the folder it came from, or None."""

    def __init__(self, metadata: Metadata, path: Path | None = None) -> None:
        """metadata: of a GGUF file. Raises FormatError naming what is not supported."""
        super().__init__(metadata)
        self.path = path
        self.name = str(metadata.get("general.name") or "")
        self._gives_template = False
        self._words = WordEncoder(self)

    @classmethod
    def from_folder(cls, folder: Path) -> "PretrainedTokenizer":
        """Reads Hugging Face's files. Raises FormatError naming what is missing or not supported."""
        return cls(read(folder), folder)

    def with_template(self, template: str) -> "PretrainedTokenizer":
        """The same with a chat template, for a model that came without one."""
        other = PretrainedTokenizer(self.metadata | {"tokenizer.chat_template": template}, self.path)
        other.name = self.name
        other._gives_template = True
        return other

    @cached_property
    def _finders(self) -> tuple[Finder, Finder]:
        """The tokens that are looked for in plain text, and in a rendered chat."""
        control = self.special_tokens
        by_hand = {token: i for token, i in self.of_type(USER_DEFINED).items() if token not in control}
        strips: set[int] = set()
        if re.search("phi-?3", self.name, re.IGNORECASE):  # as llama.cpp decides it: GGUF does not say it
            plain = {"<unk>", "<s>", "<|endoftext|>"}
            strips = {i for token, i in (control | by_hand).items() if token not in plain}
        return Finder(by_hand, strips), Finder(control | by_hand, strips)

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Ids (N,) of a text, nothing added. Control tokens written in it stay text, unless `specials`: then the text
        is a rendered chat.
        """
        ids: list[int] = []
        at_start = True
        for piece in self._finders[specials].split(text.encode("utf-8", "replace").decode("utf-8")):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._words.encode(piece, at_start)
            at_start = isinstance(piece, int)
        return np.array(ids, self.dtype)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, text: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) of many documents, each closed by eos, and the position after each: int64 (D,).

        `text` is UTF-8, each document followed by one byte of any value; `ends` (int64, (D,)) are those bytes' places.
        """
        parts: list[np.ndarray] = []
        first = 0
        closing = np.array([self.eos_id], self.dtype)
        for end in ends.tolist():
            parts += [self.encode(text[first:end].decode("utf-8", "replace")), closing]
            first = end + 1
        lengths = np.array([len(part) for part in parts], np.int64)
        joined = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        return joined, np.cumsum(lengths)[1::2]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out; bytes that are no UTF-8 become U+FFFD. The space that encoding
        puts before a text is taken off again.
        """
        numbers = list(map(int, ids))
        raw = b"".join(map(self.token_bytes.__getitem__, numbers))
        if self.add_space_prefix and raw.startswith(b" ") and self.token_bytes[numbers[0]]:
            raw = raw[1:]
        return raw.decode("utf-8", "replace")

    def gguf_metadata(self) -> dict[str, object]:
        """The `tokenizer.*` keys of a GGUF file, as they were read."""
        return dict(self.metadata)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template, as `transformers` reads them."""
        if self.path is None:
            write(self, folder)
            return
        for name in FILES:
            if (self.path / name).exists():
                shutil.copyfile(self.path / name, folder / name)
        if self._gives_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


class WordEncoder:
    """Cuts text without special tokens into words and merges each of them once, with the tokens of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._is_byte_level = vocabulary.model == "gpt2"
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, at_start: bool) -> list[int]:
        """The ids of a text. at_start: nothing, or a special token, stands before it."""
        if self._is_byte_level:
            pieces = words(text, self._vocabulary.way.patterns)
        else:
            prefix = SPACE if self._vocabulary.add_space_prefix and at_start else ""
            pieces = [word for word in self._space_cut.split(prefix + text.replace(" ", SPACE)) if word]
        ids: list[int] = []
        for word in pieces:
            ids += self._known.get(word) or self._learn(word)
        return ids

    def _learn(self, word: str) -> tuple[int, ...]:
        ids = self._merge_bytes(word) if self._is_byte_level else self._merge_characters(word)
        if len(word) <= LONGEST_REMEMBERED:
            if len(self._known) >= MAX_REMEMBERED:
                self._known = {}
            self._known[word] = ids
        return ids

    def _merge_bytes(self, word: str) -> tuple[int, ...]:
        known, ranks = self._vocabulary.ids, self._ranks
        spelled = "".join(map(BYTE_CHARACTERS.__getitem__, word.encode()))
        if self._vocabulary.way.whole_words and spelled in known:
            return (known[spelled],)
        # a byte that the vocabulary lacks stands for nothing, as in llama.cpp
        parts = merged(list(spelled), lambda left, right: ranks.get(f"{left} {right}"))
        return tuple(known[part] for part in parts if part in known)

    def _merge_characters(self, word: str) -> tuple[int, ...]:
        known, scores = self._vocabulary.ids, self._vocabulary.scores

        def rank(left: str, right: str) -> float | None:
            token = known.get(left + right)
            return None if token is None else -scores[token] if scores else 0.0

        ids: list[int] = []
        for part in merged(list(word), rank):
            if part in known:
                ids.append(known[part])
            else:
                ids += [self._byte_ids[b] for b in part.encode()]
        return tuple(ids)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {pair: rank for rank, pair in reversed(list(enumerate(self._vocabulary.merges)))}

    @cached_property
    def _byte_ids(self) -> list[int]:
        """The id that stands for each byte that no other token does."""
        ids, unknown = self._vocabulary.ids, self._vocabulary.unknown_id
        missing = unknown if unknown is not None else self._vocabulary.eos_id
        return [ids.get(f"<0x{b:02X}>", ids.get(chr(b), missing)) for b in range(256)]

    @cached_property
    def _space_cut(self) -> re.Pattern[str]:
        """Where words can be merged one by one: before a space, where no token reaches across that place."""
        bridges = {SPACE}
        for token in self._vocabulary.tokens:
            bare = token.lstrip(SPACE)
            if SPACE in bare:
                bridges |= {a for a, b in zip(bare, bare[1:], strict=False) if b == SPACE}
        return re.compile(f"(?<=[^{re.escape(''.join(bridges))}])(?={SPACE})")


def merged(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """What is left of `symbols` when no two neighbours can be merged. rank: lower goes first, None never.

    Both kinds of BPE merge the best pair again and again, of equals the leftmost. They differ in what is best: the
    earliest merge in a list (arXiv:1508.07909), or the pair whose concatenation has the highest score
    (arXiv:1808.06226).
    """
    if len(symbols) < 2:
        return symbols
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    parts: list[str | None] = list(symbols)
    queue: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        a, b = parts[left], parts[right]
        assert a is not None and b is not None
        priority = rank(a, b)
        if priority is not None:
            heapq.heappush(queue, (priority, left, right, len(a) + len(b)))

    for left in range(len(symbols) - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, length = heapq.heappop(queue)
        a, b = parts[left], parts[right]
        if a is None or b is None or len(a) + len(b) != length or after[left] != right:
            continue
        parts[left], parts[right] = a + b, None
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        if before[left] >= 0:
            offer(before[left], left)
        if after[left] >= 0:
            offer(left, after[left])
    return [part for part in parts if part is not None]
