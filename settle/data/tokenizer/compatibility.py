"""Checks that two models share a tokenizer: only then can one learn from the other's predictions."""

from collections.abc import Mapping

from settle.base.errors import UsageError
from settle.base.tokenizer import Tokenizer

_SHOWN = 40  # characters of a token that an error shows


def tokenizer_difference(one: Tokenizer, other: Tokenizer) -> str:
    """The first thing in which two tokenizers differ, as part of a sentence; empty where texts give the same ids."""
    for index, (ours, theirs) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if ours != theirs:
            return f"token {index} is {ours[:_SHOWN]!r} there and {theirs[:_SHOWN]!r} here"
    if len(one.tokens) != len(other.tokens):
        return f"it has {len(one.tokens):,} tokens there and {len(other.tokens):,} here"
    if one.model != other.model or one.pre != other.pre:
        return f"words are cut as {one.pre} there and as {other.pre} here"
    if list(one.merges) != list(other.merges):
        return "its pieces are merged in another order"
    return ""


def require_same_tokenizer(teacher: Tokenizer, student: Tokenizer, names: tuple[str, str]) -> None:
    """names: of the teacher and the student. Raises UsageError saying where the tokenizers part."""
    difference = tokenizer_difference(teacher, student)
    if difference:
        raise UsageError(
            f"{names[0]} has another tokenizer than {names[1]}: {difference}",
            "teacher and student must read the same tokens: a model of the teacher's family, or one made of it with "
            "--drop-layers, --width or --into",
        )


def require_same_tokens(model: Mapping[str, object], draft: Mapping[str, object], names: tuple[str, str]) -> None:
    """Compares the metadata of two GGUF files. names: of the model and its draft. Raises UsageError where their
    tokenizers differ."""
    for key in ("model", "tokens"):  # a draft never reads text: it goes on with the ids of its model
        name = f"tokenizer.ggml.{key}"
        if model.get(name) != draft.get(name):
            raise UsageError(
                f"{names[1]} has another tokenizer than {names[0]}: {name} is another",
                "a draft is made of its model: `settle distill MODEL INPUTS --draft`",
            )
