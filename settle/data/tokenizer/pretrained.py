"""The tokenizer of a pretrained model, from a GGUF file's metadata or a `tokenizer.json`.

Its ids are those of llama.cpp on the same file, for every text: whoever serves the model later reads the same tokens
as it was tuned on. There are three kinds, by llama.cpp's names: `gpt2` merges bytes inside words, `llama`
(SentencePiece) merges characters, spaces written as ▁, by scores; `gemma4` does the same inside lines, by a list.

Control tokens, and those that a family defined by hand, are found in a text before it is cut into words: the longest
token is looked for first, through the whole text. That equals one pass that takes the longest token at each place,
unless the end of one token is the beginning of another; then the slow way is taken.
"""

import heapq
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from settle.data.tokenizer.pre_tokenizers import words
from settle.data.tokenizer.tokenizer_files import FILES, read, write
from settle.data.tokenizer.vocabulary import BYTE_CHARACTERS, SPACE, USER_DEFINED, Metadata, Vocabulary

Tree = dict[str, "Tree"]  # next character → what may follow it; "" ends a token
# a word is remembered with its ids; a longer one is hardly ever met twice
MAX_REMEMBERED, LONGEST_REMEMBERED = 200_000, 64
_LINES = re.compile(r"[^\n]+|\n+")  # of a gemma4 tokenizer (llama.cpp, src/llama-vocab.cpp)


class Finder:
    """Finder of a set of tokens.

    tokens: text → id. strips: ids that swallow the ASCII white space after them.
    """

    def __init__(self, tokens: Mapping[str, int], strips: Collection[int] = ()) -> None:
        self.tokens = {text: i for text, i in tokens.items() if text}
        self.strips = frozenset(strips)

    def split(self, text: str) -> list[str | int]:
        """Return the text as pieces without such a token (str, never empty) and tokens (int), in order."""
        if not self.tokens:
            return [text] if text else []
        pieces: list[str | int] = []
        if self._overlapping:
            pieces = self._one_by_one(text)
        else:
            for number, piece in enumerate(self._pattern.split(text)):
                pieces.append(self.tokens[piece] if number % 2 else piece)
        if self.strips:
            for before, i in enumerate(pieces[:-1]):
                after = pieces[before + 1]
                if isinstance(i, int) and i in self.strips and isinstance(after, str):
                    pieces[before + 1] = after.lstrip(" \t\n\v\f\r")
        return [piece for piece in pieces if piece != ""]

    def _one_by_one(self, text: str) -> list[str | int]:
        pieces: list[str | int] = [text]
        for token in sorted((t for t in self.tokens if t in text), key=lambda t: -len(t.encode())):
            left: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    left.append(piece)
                    continue
                first, *rest = piece.split(token)
                left.append(first)
                for part in rest:
                    left += [self.tokens[token], part]
            pieces = left
        return pieces

    @cached_property
    def _overlapping(self) -> bool:
        """Return whether two tokens can overlap in a text, other than as runs of one character."""
        mixed = [t for t in self.tokens if len(set(t)) > 1]
        runs = [t for t in self.tokens if len(set(t)) == 1]
        begin_mixed = {t[:n] for t in mixed for n in range(1, len(t))}
        begin = begin_mixed | {t[:n] for t in runs for n in range(1, len(t))}
        return any(t[n:] in begin for t in mixed for n in range(1, len(t))) or any(
            t[n:] in begin_mixed for t in runs for n in range(1, len(t))
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Longest token first at each place; written as a tree, since there can be thousands."""
        tree: Tree = {}
        for token in self.tokens:
            node = tree
            for character in token:
                node = node.setdefault(character, {})
            node[""] = {}
        return re.compile(f"({_written(tree)})")


def _written(node: Tree) -> str:
    """Return a regular expression of a tree of characters, without recursion into runs: `\\n\\n\\n…` is deep."""
    literal = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        literal += re.escape(character)
    branches = [re.escape(c) + _written(child) for c, child in node.items() if c != ""]
    if not branches:
        return literal
    inner = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return literal + (f"(?:{inner})?" if "" in node else inner)


class PretrainedTokenizer(Vocabulary):
    """A tokenizer that encodes and decodes as the model's file says.

    path: the folder it came from, or None.
    """

    def __init__(self, metadata: Metadata, path: Path | None = None) -> None:
        """Read the metadata of a GGUF file. Raises FormatError naming what is not supported."""
        super().__init__(metadata)
        self.path = path
        self.name = str(metadata.get("general.name") or "")
        self._gives_template = False
        self._words = WordEncoder(self)

    @classmethod
    def from_folder(cls, folder: Path) -> "PretrainedTokenizer":
        """Read Hugging Face's files. Raises FormatError naming what is missing or not supported."""
        return cls(read(folder), folder)

    def with_template(self, template: str) -> "PretrainedTokenizer":
        """Return this tokenizer with a chat template, for a model that came without one."""
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
        """Return the ids (N,) of a text, nothing added.

        Control tokens written in it stay text, unless `specials`: then the text is a rendered chat.
        """
        ids: list[int] = []
        at_start = True
        for piece in self._finders[specials].split(text.encode("utf-8", "replace").decode("utf-8")):
            ids += [piece] if isinstance(piece, int) else self._words.encode(piece, at_start)
            at_start = isinstance(piece, int)
        return np.array(ids, self.dtype)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, text: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (N,) of many documents, each closed by eos, and the position after each: int64 (D,).

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
        """Return the text of `ids`, control tokens left out; bytes that are not UTF-8 become U+FFFD.

        The space that encoding puts before a text is taken off again.
        """
        numbers = list(map(int, ids))
        raw = b"".join(map(self.token_bytes.__getitem__, numbers))
        if self.add_space_prefix and raw.startswith(b" ") and self.token_bytes[numbers[0]]:
            raw = raw[1:]
        return raw.decode("utf-8", "replace")

    def gguf_metadata(self) -> Metadata:
        """Return the `tokenizer.*` keys of a GGUF file, as they were read."""
        return self.metadata

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as `transformers` reads them."""
        if self.path is None:
            write(self, folder)
            return
        for name in FILES:
            if (self.path / name).exists():
                shutil.copyfile(self.path / name, folder / name)
        if self._gives_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8", newline="")


class WordEncoder:
    """Cuts text without special tokens into words and merges each of them once, with the tokens of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._is_byte_level = vocabulary.model == "gpt2"
        self._cuts_lines = vocabulary.model == "gemma4"
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, at_start: bool) -> list[int]:
        """Return the ids of a text. at_start: whether nothing, or a special token, comes before it."""
        if self._is_byte_level:
            pieces = words(text, self._vocabulary.way.patterns)
        elif self._cuts_lines:
            pieces = _LINES.findall(text.replace(" ", SPACE))
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
        known, scores, ranks = self._vocabulary.ids, self._vocabulary.scores, self._ranks
        if self._cuts_lines and word[0] == "\n" and word in known:
            return (known[word],)

        def rank(left: str, right: str) -> float | None:
            if ranks:
                return ranks.get(f"{left} {right}")
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
        if not self._vocabulary.has_merges:
            return {}
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
    """Merge neighbours until no two can be merged, and return what is left. rank: lower goes first, None never.

    Both kinds of BPE merge the best pair again and again, of equals the leftmost. They differ in what is best: the
    earliest merge in a list (arXiv:1508.07909), or the pair whose concatenation has the highest score
    (arXiv:1808.06226).
    """
    if len(symbols) < 2:
        return symbols
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    parts = list(symbols)  # "" where a symbol has joined the one before it
    queue: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        priority = rank(parts[left], parts[right])
        if priority is not None:
            heapq.heappush(queue, (priority, left, right, len(parts[left]) + len(parts[right])))

    for left in range(len(symbols) - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, length = heapq.heappop(queue)
        a, b = parts[left], parts[right]
        if not a or not b or len(a) + len(b) != length or after[left] != right:
            continue
        parts[left], parts[right] = a + b, ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        if before[left] >= 0:
            offer(before[left], left)
        if after[left] >= 0:
            offer(left, after[left])
    return [part for part in parts if part]
