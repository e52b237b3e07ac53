"""The tokenizer as every room sees it: what a tokenizer trained here and a pretrained model's have in common."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from settle.base.files import JsonObject

if TYPE_CHECKING:
    import numpy as np


class Tokenizer(Protocol):
    """Turns text into ids and back, with the ids that llama.cpp gives for the same file.

    model, pre: llama.cpp's names of the algorithm and of how words are cut. tokens: the text of each id as GGUF spells
    it. token_types: as in GGUF. merges: "left right", in order. special_tokens: control tokens and their ids; text
    becomes one of them only when asked (`specials`). token_bytes, byte_length: what each id stands for, empty for
    control tokens, and its length, int32 (V,). bos_id: opens a text, or None; add_bos: whether a text begins with it.
    pad_id and turn_end_id are eos_id where the vocabulary has no token of their own. dtype: that ids are stored in.
    """

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    vocab_size: int
    dtype: "type[np.uint16] | type[np.uint32]"
    chat_template: str
    add_bos: bool
    bos_id: int | None
    eos_id: int
    pad_id: int
    turn_end_id: int

    @property
    def special_tokens(self) -> dict[str, int]: ...

    @property
    def token_bytes(self) -> list[bytes]: ...

    @property
    def byte_length(self) -> "np.ndarray": ...

    def encode(self, text: str, specials: bool = False) -> "np.ndarray":
        """Return the ids (N,) of a text, nothing added.

        Control tokens written in it stay text, unless `specials`: then the text is a rendered chat.
        """

    def encode_batch(self, texts: Sequence[str]) -> "list[np.ndarray]":
        """Return the ids of each text."""

    def encode_documents(self, text: bytes, ends: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """Ids (N,) of many documents, each closed by eos, and the position after each: int64 (D,).

        `text` is UTF-8, each document followed by one byte of any value; `ends` (int64, (D,)) are those bytes' places.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, control tokens left out; bytes that are no UTF-8 become U+FFFD."""

    def gguf_metadata(self) -> JsonObject:
        """Return the `tokenizer.*` keys of a GGUF file."""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as `transformers` reads them."""
