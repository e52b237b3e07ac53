"""Fewer tokens: those that the person's text needs. In a small model the token table is most of the file.

The rows that stay are untouched, also in a quantized file, where a row is a whole number of blocks: nothing is rounded
again. A text that needs no removed token gets the same ids, renumbered, and the same distribution among what is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from settle.base.errors import DataError, UsageError
from settle.base.tokenizer import Tokenizer
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats.gguf import read_gguf
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners import OnProgress, Pruned, Pruner, always
from settle.shrink.vocabulary import Tokens, counted, cut_rows, cut_tokenizer, scripts_of

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
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

    def to_json(self) -> dict[str, object]:
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

    def cut_file(
        self, source: Path, target: Path, texts: Sequence[str], metadata: Mapping[str, object] | None = None
    ) -> RemainingTokens:
        """Cut one GGUF file into another, whatever its types; no more than a few rows are in memory at a time.

        metadata: keys to set. Raises what `prune` raises, FormatError for an unsound file, ResourceError for a disk
        that is too small.
        """
        kept = self.choose(PretrainedTokenizer(read_gguf(source).metadata), texts)
        cut_rows(source, target, kept.ids, metadata)
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
            raise UsageError(f"the text needs all of the {num_tokens} tokens", "give less text, or set `tokens`")
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
