"""The vocabulary of a pretrained model, by the `tokenizer.*` keys of a GGUF file, and its comparison with another."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from settle.base.chat_template import complaint
from settle.base.errors import FormatError, UsageError, malformed_is_format_error
from settle.base.tokenizer import Tokenizer
from settle.data.tokenizer.pre_tokenizers import WAYS, Way

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of the GGUF format
# llama.cpp takes these for control tokens whatever the file says of them: ends of a text, a turn, a tool call
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|eom_id|>", "<EOT>", "[EOT]", "_<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "</s>", "[EOS]", "<eos>",
    "<|return|>", "<|call|>", "<|tool_response>",
)  # fmt: skip
# tokens that end one speaker's turn, where a file does not name its own
TURN_ENDS = ENDS[:8]
HARMONY = frozenset({"<|return|>", "<|call|>"})  # gpt-oss's: where both are, `<|end|>` ends a message of a turn only


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's printable stand-in for each byte: what `tokenizers` and GGUF files spell tokens with."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()


SPACE = "▁"
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}, "gemma4": {},
}  # fmt: skip
_PREFIX = "tokenizer.ggml."
_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
Metadata = Mapping[str, Any]  # the values of a GGUF file by key
_SHOWN = 40  # characters of a token that an error shows


class Vocabulary:
    """The tokens, their types and special ids.

    model: "gpt2", "llama" or "gemma4". pre: llama.cpp's name of how words are cut (gpt2), `way` what that means.
    tokens: the text of each id as GGUF spells it. token_types: GGUF's. scores: of a llama tokenizer. merges:
    "left right", of the others. byte_length: int32 (V,), bytes each id stands for, 0 for control tokens. Ids that a
    file does not have are None: bos_id (opens a text), unknown_id; pad_id and turn_end_id fall back to eos_id.
    """

    @malformed_is_format_error("its tokenizer")
    def __init__(self, metadata: Metadata) -> None:
        """Read the metadata of a GGUF file. Raises FormatError naming what is not supported."""
        self.metadata = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        self.model = str(self._value("model"))
        if self.model not in _DEFAULT_IDS:
            raise FormatError(f"the tokenizer {self.model!r} is not supported", f"known: {', '.join(_DEFAULT_IDS)}")
        self.pre = str(self._value("pre") or "default")
        if self.model == "gpt2" and self.pre not in WAYS:
            raise FormatError(f"the pre-tokenizer {self.pre!r} is not supported", f"known: {', '.join(WAYS)}")
        self.way = WAYS[self.pre] if self.model == "gpt2" else Way(())
        self.tokens: list[str] = self._value("tokens") or []
        self.vocab_size = len(self.tokens)
        self.token_types: list[int] = self._value("token_type") or [NORMAL] * self.vocab_size
        self.merges: list[str] = self._value("merges") or []
        self.scores: list[float] = self._value("scores") or []
        if not self.tokens or (self.has_merges and self._value("merges") is None):
            raise FormatError("the file has no whole tokenizer in it", "get a file with its tokenizer")
        self.dtype: type[np.uint16] | type[np.uint32] = np.uint16 if self.vocab_size <= 65536 else np.uint32
        self.chat_template: str = self.metadata.get("tokenizer.chat_template") or ""
        self._require_sound()
        self.add_space_prefix = bool(self._value("add_space_prefix", self.model == "llama"))
        self.add_bos = bool(self._value("add_bos_token", self.model == "llama" or self.way.add_bos))
        self.add_bos = self.add_bos or self.model == "gemma4"  # whatever the file says, in llama.cpp
        self.bos_id: int | None = self._special_id("bos")
        self.unknown_id = self._special_id("unknown")
        eos, padding = self._special_id("eos"), self._special_id("padding")
        if eos is None:
            raise FormatError("the tokenizer has no token that ends a text", "get a file with its tokenizer")
        self.eos_id: int = eos
        self.pad_id: int = eos if padding is None else padding
        self.turn_end_id = self._turn_end()

    @property
    def has_merges(self) -> bool:
        """Whether tokens are merged in the order of a list, not by their scores."""
        return self.model != "llama"

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens: they stand for no text, and text becomes one of them only when asked (`specials`)."""
        control = self.of_type(UNKNOWN, CONTROL)
        return control | {token: self.ids[token] for token in ENDS if token in self.ids}

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for; empty for control tokens."""
        control = set(self.special_tokens.values())
        return [
            b"" if i in control or kind == UNUSED else self._bytes_of(token, kind)
            for i, (token, kind) in enumerate(zip(self.tokens, self.token_types, strict=True))
        ]

    @cached_property
    def byte_length(self) -> np.ndarray:
        return np.array([len(b) for b in self.token_bytes], np.int32)

    def of_type(self, *types: int) -> dict[str, int]:
        """Return the tokens of these GGUF types, with their ids."""
        return {t: i for i, (t, kind) in enumerate(zip(self.tokens, self.token_types, strict=True)) if kind in types}

    def _require_sound(self) -> None:
        """Raise FormatError for lists of other types or lengths than a vocabulary has."""
        size = self.vocab_size
        lists: dict[str, tuple[list[Any], type, bool]] = {
            "tokens": (self.tokens, str, True),
            "token_type": (self.token_types, int, True),
            "merges": (self.merges, str, False),
            "scores": (self.scores, float, bool(self.scores)),
        }
        for name, (values, kind, is_per_token) in lists.items():
            if not isinstance(values, list) or not all(type(value) is kind for value in values):
                raise FormatError(f"tokenizer.ggml.{name} is no list of {kind.__name__}", "get the file again")
            if is_per_token and len(values) != size:
                raise FormatError(
                    f"tokenizer.ggml.{name} has {len(values)} entries, {size} tokens", "get the file again"
                )
        if wrong_template := complaint(self.chat_template):
            raise FormatError(f"its chat template {wrong_template}", "get the file again")
        for key, value in self.metadata.items():
            if key.endswith("_token_id") and not (type(value) is int and 0 <= value < size):
                raise FormatError(f"{key} is {value!r:.40}, outside the {size} tokens", "get the file again")
        if any(merge.find(" ", 1) < 0 for merge in self.merges):
            raise FormatError("tokenizer.ggml.merges has an entry that is no pair", "get the file again")
        wrong = next((token for token in self.of_type(BYTE) if not _BYTE.fullmatch(token)), None)
        if wrong is not None:
            raise FormatError(f"the token {wrong!r:.40} is said to be a byte", "get the file again")

    def _value(self, key: str, default: object = None) -> Any:
        value = self.metadata.get(_PREFIX + key)
        return default if value is None else value

    def _special_id(self, name: str) -> int | None:
        default = _DEFAULT_IDS[self.model].get(name)
        token: int | None = self._value(f"{name}_token_id")
        return token if token is not None else default if (default or 0) < self.vocab_size else None

    def _turn_end(self) -> int:
        token: int | None = self._value("eot_token_id")
        if token is not None:
            return token
        ends_messages = {"<|end|>"} if self.ids.keys() >= HARMONY else set()
        known = [t for t in TURN_ENDS if t in self.ids and t not in ends_messages]
        if self.chat_template:  # one that ends a turn with none of them ends it with eos
            known = [t for t in known if t in self.chat_template]
        return self.ids[known[0]] if known else self.eos_id

    def _bytes_of(self, token: str, kind: int) -> bytes:
        if kind == BYTE:
            return bytes([int(token[3:5], 16)])
        if kind == USER_DEFINED:
            return token.encode()
        if self.model != "gpt2":
            return token.replace(SPACE, " ").encode()
        return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)


def tokenizer_difference(one: Tokenizer, other: Tokenizer) -> str:
    """Return the first difference of two tokenizers as part of a sentence; "" where texts give the same ids."""
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
    """Raise UsageError with the first difference of two tokenizers. names: of the teacher and the student."""
    difference = tokenizer_difference(teacher, student)
    if difference:
        raise UsageError(
            f"{names[0]} has another tokenizer than {names[1]}: {difference}",
            "teacher and student must read the same tokens: a model of the teacher's family, or one made of it with "
            "--drop-layers, --width or --into",
        )


def require_same_tokens(model: Metadata, draft: Metadata, names: tuple[str, str]) -> None:
    """Raise UsageError where the tokenizers of two GGUF files differ, by their metadata.

    names: of the model and its draft.
    """
    for key in ("model", "tokens"):  # a draft never reads text: it goes on with the ids of its model
        name = f"tokenizer.ggml.{key}"
        if model.get(name) != draft.get(name):
            raise UsageError(
                f"{names[1]} has another tokenizer than {names[0]}: {name} is another",
                "a draft is made of its model: `settle distill MODEL INPUTS --draft`",
            )
