"""Fewer tokens: those that the person's text needs. In a small model the token table is most of the file.

The rows that stay are untouched, also in a quantized file, where a row is a whole number of blocks: nothing is rounded
again. A text that needs no removed token gets the same ids, renumbered, and the same distribution among what is left.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from settle.base.errors import DataError, UsageError
from settle.base.files import JsonObject
from settle.base.tokenizer import Tokenizer
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.data.tokenizer.vocabulary import BYTE, BYTE_CHARACTERS, NORMAL, SPACE, USER_DEFINED
from settle.formats import LazyTensor, Metadata, Weights, beside, write_array
from settle.formats.gguf import TABLES as FILE_TABLES
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.formats.gguf.metadata import TOKENS, texts
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners import OnProgress, Pruned, Pruner, always

_PREFIX = "tokenizer.ggml."
# names of tokens that no one was ever taught; a family leaves them for those who tune it
_RESERVED = re.compile(
    r"<unused\d+>|\[unused\d+\]|\[PAD\d+\]|<\|reserved[^>]*\|>|<\|dummy[^>]*\|>|<\|placeholder\d+\|>"
)
_ROLES = ("user", "assistant", "system", "model", "tool")
_RARE_CHARACTER = 1e-4  # share of a text's characters
_RARE_SCRIPT = 1e-3  # share of a text's letters; a few names do not make a language


class Tokens:
    """What is in a tokenizer, seen as something to take tokens from."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """tokenizer: settle's own or `PretrainedTokenizer`."""
        if not isinstance(tokenizer, PretrainedTokenizer):
            tokenizer = PretrainedTokenizer(tokenizer.gguf_metadata())
        self.tokenizer: PretrainedTokenizer = tokenizer
        self.tokens: list[str] = self.tokenizer.tokens
        self.types: list[int] = self.tokenizer.token_types
        self.is_byte_level = self.tokenizer.model == "gpt2"
        self._closed: dict[int, frozenset[int]] = {}

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def needed(self) -> set[int]:
        """Return what every text may need.

        Control tokens that mean something, tokens defined by hand, bytes, what a chat template writes.
        """
        control = set(self.tokenizer.special_tokens.values())
        needed_ids = {i for i in control if not _RESERVED.fullmatch(self.tokens[i])}
        for key, value in self.tokenizer.gguf_metadata().items():
            if key.endswith("_token_id") and isinstance(value, int):
                needed_ids.add(value)
            elif key.endswith("_token_ids") and isinstance(value, list | tuple):
                needed_ids |= set(value)
        for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind == BYTE or (kind == USER_DEFINED and not _RESERVED.fullmatch(token)):
                needed_ids.add(i)
        if self.is_byte_level:
            needed_ids |= {self.ids[c] for c in BYTE_CHARACTERS.values() if c in self.ids}
        written = [self.tokenizer.chat_template, *_ROLES]
        return needed_ids | {int(i) for text in written for i in self.tokenizer.encode(text, specials=True)}

    def characters(self, scripts: Callable[[str], bool]) -> set[int]:
        """Return the tokens of a single character that is no letter, or of a script that is asked for.

        In a byte-level tokenizer those are bytes, which stay anyway.
        """
        if self.is_byte_level:
            return set()
        single = ((i, t) for i, (t, kind) in enumerate(zip(self.tokens, self.types, strict=True)) if kind == NORMAL)
        return {i for i, token in single if len(token) == 1 and (not token.isalpha() or scripts(token))}

    def kin(self, ids: Iterable[int]) -> set[int]:
        """Return these words in lower case, with a capital, in capitals, with and without a space before them."""
        space = BYTE_CHARACTERS[0x20] if self.is_byte_level else SPACE
        related = set()
        for i in ids:
            if self.types[i] != NORMAL:
                continue
            bare = self.tokens[i].removeprefix(space)
            for form in {bare, bare.lower(), bare.capitalize(), bare.upper()}:
                related |= {self.ids[t] for t in (form, space + form) if t in self.ids}
        return {i for i in related if self.types[i] == NORMAL}

    def alike(self, texts: Iterable[str]) -> list[int]:
        """Return tokens of nothing but characters that are common in these texts, in the vocabulary's order.

        That is the order of how frequent they were where it was learned.
        """
        space = {" ": SPACE}
        number: Counter[str] = Counter()
        for text in texts:
            if self.is_byte_level:
                number.update(map(BYTE_CHARACTERS.__getitem__, text.encode("utf-8", "replace")))
            else:
                number.update(text)
        most, counted_so_far, common = (1 - _RARE_CHARACTER) * sum(number.values()), 0, set()
        for character, times in number.most_common():
            if counted_so_far >= most:
                break
            counted_so_far += times
            common.add(character if self.is_byte_level else space.get(character, character))
        pairs = enumerate(zip(self.tokens, self.types, strict=True))
        return [i for i, (token, kind) in pairs if kind == NORMAL and common.issuperset(token)]

    def closed(self, ids: Iterable[int]) -> set[int]:
        """Return these and all that they are merged from."""
        kept_ids: set[int] = set()
        for i in ids:
            if i not in self._closed:
                parts = self._parts(self.tokens[i]) if self.types[i] == NORMAL else ()
                self._closed[i] = frozenset([i, *(self.ids[part] for part in parts)])
            kept_ids |= self._closed[i]
        return kept_ids

    def _parts(self, token: str) -> list[str]:
        """Every token that is there on the way from single characters to `token`."""
        symbols = list(token)
        parts = [c for c in symbols if c in self.ids]
        rank = self._rank
        while len(symbols) > 1:
            ranks = [rank(a, b) for a, b in zip(symbols, symbols[1:], strict=False)]
            best = min((r for r in ranks if r is not None), default=None)
            if best is None:
                break
            at = ranks.index(best)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            parts.append(symbols[at])
        return [part for part in parts if part in self.ids]

    @cached_property
    def _rank(self) -> Callable[[str, str], float | None]:
        if self.tokenizer.has_merges:
            ranks = {pair: float(rank) for rank, pair in reversed(list(enumerate(self.tokenizer.merges)))}
            return lambda left, right: ranks.get(f"{left} {right}")
        ids, scores = self.ids, self.tokenizer.scores

        def rank(left: str, right: str) -> float | None:
            merged = ids.get(left + right)
            return None if merged is None else -scores[merged] if scores else 0.0

        return rank


def scripts_of(texts: Iterable[str]) -> Callable[[str], bool]:
    """Return a test of whether a letter is of a script that these texts are written in."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    by_script: Counter[str] = Counter()
    for letter, number in letters.items():
        if letter.isalpha():
            by_script[_script(letter)] += number
    least = _RARE_SCRIPT * sum(by_script.values())
    common = {script for script, number in by_script.items() if number >= least}
    return lambda letter: _script(letter) in common


def _script(letter: str) -> str:
    """Return the first word of a character's name, which is its script for all but a few: "LATIN", "CJK"."""
    return unicodedata.name(letter, "?").split()[0]


def cut_metadata(metadata: Metadata, kept_ids: Sequence[int]) -> Metadata:
    """Return the `tokenizer.*` keys of a GGUF file with only the tokens `kept_ids` (K,), renumbered.

    The key of a removed token is dropped.
    """
    tokens = texts(metadata, TOKENS)
    new = {int(old): number for number, old in enumerate(kept_ids)}
    left = {tokens[i] for i in kept_ids}
    cut: dict[str, object] = {}
    for key, value in metadata.items():
        if not key.startswith("tokenizer."):
            continue
        if key == f"{_PREFIX}merges":
            pairs = (pair.split(" ", 1) for pair in texts(metadata, key))
            cut[key] = [f"{a} {b}" for a, b in pairs if a in left and b in left and a + b in left]
        elif key.endswith("_token_id"):
            if isinstance(value, int) and value in new:
                cut[key] = new[value]
        elif key.endswith("_token_ids") and isinstance(value, list):
            cut[key] = [new[i] for i in value if i in new]
        elif isinstance(value, list) and len(value) == len(tokens):
            cut[key] = [value[i] for i in kept_ids]
        else:
            cut[key] = value
    return cut


def cut_tokenizer(tokenizer: PretrainedTokenizer, kept_ids: Sequence[int]) -> PretrainedTokenizer:
    """Return the tokenizer that has only the tokens `kept_ids` (K,), numbered in that order."""
    cut = PretrainedTokenizer(cut_metadata(tokenizer.gguf_metadata(), kept_ids))
    cut.name = tokenizer.name
    return cut


def counted(tokenizer: Tokenizer, texts: Sequence[str], piece: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """How often each id comes in the texts, int64 (V,): in nine of ten pieces, and in every tenth."""
    size = len(tokenizer.tokens)
    counts = np.zeros((2, size), np.int64)
    number = 0
    for ids in tokenizer.encode_batch(list(texts)):
        for at in range(0, len(ids), piece):
            counts[int(number % 10 == 9)] += np.bincount(ids[at : at + piece], minlength=size)
            number += 1
    return counts[0], counts[1]


_PIECE = 4 << 20  # bytes in memory at a time
# the types in which other programs write these lists
_ARRAYS = {"tokenizer.ggml.scores": np.float32, "tokenizer.ggml.token_type": np.int32}


@dataclass(frozen=True)
class _Cut:
    """A tensor as it goes into the new file. rows: which of its rows, None for all."""

    name: str
    tensor: LazyTensor
    rows: Sequence[int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape if self.rows is None else (len(self.rows), *self.tensor.shape[1:])

    @property
    def num_bytes(self) -> int:
        return self.tensor.num_bytes // self.tensor.shape[0] * self.shape[0]

    def pieces(self) -> Iterator[np.ndarray]:
        """Its bytes, uint8, some at a time; what was read is given back."""
        place, number = self.tensor.place, self.tensor.num_bytes
        if self.rows is None:
            for first in range(0, number, _PIECE):
                last = min(first + _PIECE, number)
                yield place.bytes(first, last)
                place.forget(first, last)
            return
        row = number // self.tensor.shape[0]
        table = place.bytes().reshape(self.tensor.shape[0], row)
        step = max(1, _PIECE // row)
        for first in range(0, len(self.rows), step):
            chosen = np.asarray(self.rows[first : first + step])
            yield table[chosen]
            place.forget(int(chosen.min()) * row, int(chosen.max() + 1) * row)


def cut_rows(source: Path, target: Path, kept_ids: Sequence[int]) -> Path:
    """Write the model of `source` with the tokens `kept_ids` (K,), old ids in their new order.

    Written to a file next to the target and renamed; what stays is copied as it lies, so quantized weights keep every
    bit. Raises FormatError for a source that is not sound, ResourceError when the disk is too small.
    """
    file = read_gguf(source)
    cut = cut_metadata(file.metadata, kept_ids)
    changes = {key: value for key, value in cut.items() if file.metadata[key] != value}
    changes = {key: np.asarray(value, _ARRAYS[key]) if key in _ARRAYS else value for key, value in changes.items()}
    changes |= {key: None for key in file.metadata if key.endswith("_token_id") and key not in cut}
    own = f"{file.metadata.get('general.architecture')}.vocab_size"
    if own in file.metadata:
        changes[own] = len(kept_ids)
    tables = (*FILE_TABLES, "per_layer_token_embd.weight")
    cuts = [_Cut(name, tensor, kept_ids if name in tables else None) for name, tensor in file.tensors.items()]
    return _write(file, cuts, target, changes)


def _write(file: Weights, cuts: Sequence[_Cut], target: Path, changes: Metadata) -> Path:
    from gguf.utility import model_weight_count_rounded_notation

    if "general.size_label" in file.metadata:
        number = sum(math.prod(cut.shape) for cut in cuts)
        changes = {"general.size_label": model_weight_count_rounded_notation(number), **changes}
    entries = [Entry(cut.name, cut.shape, cut.tensor.dtype, cut.num_bytes) for cut in cuts]
    planned = layout(file, entries, changes)
    with beside(Path(target), planned.total) as path, path.open("wb") as f:
        f.write(planned.header)
        for cut in cuts:
            for piece in cut.pieces():
                write_array(f, piece)
            f.write(bytes(planned.padding(cut.num_bytes)))
    return Path(target)


TABLES = ("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight", "lm_head.weight")
_STEP = 64  # the number of tokens is a multiple of it, so that products with the table have whole tiles
_MOST_UNSEEN = 0.003  # share of further tokens; one in smaller pieces costs some ten bits more


@dataclass(frozen=True)
class VocabularyReport:
    """What a smaller vocabulary leaves out.

    tokens: before and after. text_tokens: of the text; removed_in_the_text: of those. unseen_share: of the tokens of
    further text, what will be missing, as nine tenths of the text predict it for the tenth; None for too short a text.
    """

    tokens: tuple[int, int]
    always_kept: int
    in_the_text: int
    text_tokens: int
    removed_in_the_text: int
    unseen_share: float | None

    @property
    def warning(self) -> str:
        """What a person should know; "" for nothing."""
        if self.unseen_share is not None and self.unseen_share <= _MOST_UNSEEN:
            return ""
        share = "an unknown share" if self.unseen_share is None else f"{self.unseen_share:.1%}"
        return (
            f"{share} of the tokens of further text of this kind will be written in smaller pieces: the text has only "
            f"{self.text_tokens:,} tokens; more text, or more tokens kept, make it less"
        )

    def to_json(self) -> JsonObject:
        record = {"pruner": "vocabulary", **asdict(self), "tokens": list(self.tokens)}
        return record | ({"warning": self.warning} if self.warning else {})


@dataclass(frozen=True)
class RemainingTokens:
    """ids: old ids of the tokens that stay, ascending; their places are the new ids."""

    ids: list[int]
    report: VocabularyReport


class Vocabulary(Pruner):
    """Removes tokens."""

    tokens: int | None = Field(
        None, gt=0, description="maximum number of tokens to keep; as many as are needed when not given"
    )
    least: int = Field(1, ge=1, description="number of times that a token must occur in the text to be kept")
    kin: bool = Field(
        True, description="also keep the variants of a kept word in other capitals and with or without a space"
    )
    unseen: float = Field(
        0.001, ge=0, le=1, description="share of the tokens of further text that may be missing; 1 keeps no others"
    )

    def prune(
        self,
        subject: PrunableModel,
        windows: Sequence[Sequence[int]],
        texts: Sequence[str],
        on_progress: OnProgress = always,
    ) -> Pruned:
        kept = self.choose(subject.tokenizer, texts)
        return Pruned(cut_subject(subject, kept.ids), kept.report.to_json())

    def cut_file(self, source: Path, target: Path, texts: Sequence[str]) -> RemainingTokens:
        """Cut one GGUF file into another, whatever its types; no more than a few rows are in memory at a time.

        Raises what `prune` raises, FormatError for an unsound file, ResourceError for a disk that is too small.
        """
        kept = self.choose(PretrainedTokenizer(read_gguf(source).metadata), texts)
        cut_rows(source, target, kept.ids)
        return kept

    def choose(self, tokenizer: Tokenizer, texts: Sequence[str]) -> RemainingTokens:
        """Choose which tokens stay.

        Raises DataError without text, UsageError for a number that is too small, naming the smallest, and when nothing
        would go.
        """
        names = Tokens(tokenizer)
        first, second = counted(names.tokenizer, texts)
        if not (first + second).any():
            raise DataError("there is no text to see which tokens are needed", "give one with --data")
        always = names.closed(names.needed | names.characters(scripts_of(texts)))
        if self.tokens is not None and self.tokens < len(always):
            raise UsageError(
                f"{self.tokens} tokens are too few: {len(always)} are special tokens, bytes and single characters",
                f"keep {_up(len(always))} or more",
            )
        more = names.alike(texts) if self.unseen < 1 and second.any() else []
        nine = self._filled(names, always, first, ())
        number = _number(nine, more, second, self.unseen)
        kept = self._filled(names, always, first + second, more[:number])
        num_tokens = len(names.tokens)
        if len(kept) >= num_tokens:
            raise UsageError(f"the text needs all of the {num_tokens} tokens", "give less text")
        ids = sorted(kept)
        unseen_share = None
        if second.any():
            have = nine | kept & set(more[:number])
            unseen_share = float(second[[i for i in range(num_tokens) if i not in have]].sum() / second.sum())
        return RemainingTokens(ids, _report(names, always, ids, first + second, unseen_share))

    def _filled(self, names: Tokens, always: set[int], counts: np.ndarray, more: Sequence[int]) -> set[int]:
        """Add to `always` what the text has, the most frequent first, then its kin, then `more`.

        The number becomes a multiple of `_STEP`.
        """
        num_tokens = len(names.tokens)
        order = np.argsort(-counts, kind="stable")
        in_the_text = [int(i) for i in order[: int((counts >= self.least).sum())]]
        kin = sorted(names.kin(in_the_text)) if self.kin else []
        most = num_tokens if self.tokens is None else min(self.tokens, num_tokens)
        kept = set(always)
        for i in (*in_the_text, *kin, *more):
            _add(kept, names.closed([i]), most)
        whole = _up(len(kept))
        whole = whole if whole <= most and whole < num_tokens else len(kept)
        for i in range(num_tokens):  # earlier tokens are more frequent in most vocabularies
            if len(kept) >= whole:
                break
            _add(kept, names.closed([i]), whole)
        return kept


def _number(kept: set[int], more: Sequence[int], counts: np.ndarray, share: float) -> int:
    """Return how many of `more` are needed next to `kept` so that no larger share of counts (V,) is missing.

    If all of them are too few, as many as help.
    """
    missing = int(counts.sum()) - int(counts[list(kept)].sum())
    number = 0
    for place, i in enumerate(more, 1):
        if missing <= share * counts.sum():
            break
        if i not in kept and counts[i]:
            missing -= int(counts[i])
            number = place
    return number


def _report(
    names: Tokens, always: set[int], ids: Sequence[int], counts: np.ndarray, unseen_share: float | None
) -> VocabularyReport:
    return VocabularyReport(
        tokens=(len(names.tokens), len(ids)),
        always_kept=len(always),
        in_the_text=int((counts > 0).sum()),
        text_tokens=int(counts.sum()),
        removed_in_the_text=int(counts.sum() - counts[list(ids)].sum()),
        unseen_share=unseen_share,
    )


def cut_subject(subject: PrunableModel, kept: Sequence[int]) -> PrunableModel:
    """Return the model with the tokens `kept`, old ids in their new order."""
    old, new = subject.part, {int(i): place for place, i in enumerate(kept)}
    names = Tokens(subject.tokenizer)

    def place_of(token_id: object) -> int | None:
        return new.get(token_id) if isinstance(token_id, int) else None

    ends = getattr(old, "eos_token_id", None)
    fields: dict[str, object] = {"vocab_size": len(kept)}
    for key in ("bos_token_id", "pad_token_id"):
        fields[key] = place_of(getattr(old, key, None))
    fields["eos_token_id"] = tuple(new[i] for i in ends if i in new) if isinstance(ends, tuple) else place_of(ends)
    rows = torch.as_tensor(list(kept), dtype=torch.long)
    cut = {name: t[rows] if name in TABLES else t for name, t in subject.weights.items()}
    return subject.with_part(old.with_fields(**fields), cut, cut_tokenizer(names.tokenizer, kept))


def _add(kept: set[int], more: set[int], most: int) -> None:
    """All of `more`, if they fit."""
    new = more - kept
    if len(kept) + len(new) <= most:
        kept |= new


def _up(number: int) -> int:
    return -(-number // _STEP) * _STEP
