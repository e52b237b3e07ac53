"""The tokenizer of a model that others trained, from a GGUF file's metadata or a `tokenizer.json`.

Its ids are those of llama.cpp on the same file, for every text: whoever serves the model later reads the same tokens
as it was tuned on. Two kinds, by llama.cpp's names: `gpt2` merges bytes inside words, `llama` (SentencePiece) merges
characters, spaces written as ▁.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import FormatError
from settle.data.tokenizer.bpe_merges import merged
from settle.data.tokenizer.byte_bpe import BYTE_CHARACTERS
from settle.data.tokenizer.pre_tokenizers import WAYS, Way, words
from settle.data.tokenizer.special_tokens import Finder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of the GGUF format
SPACE = "▁"
# a word is remembered with its ids; a longer one is hardly ever met twice
MOST_REMEMBERED, LONGEST_REMEMBERED = 200_000, 64
# llama.cpp takes these for control tokens whatever the file says of them: ends of a text, a turn, a tool call
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|eom_id|>", "<EOT>", "[EOT]", "_<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "</s>", "[EOS]", "<eos>",
    "<|return|>", "<|call|>", "<|tool_response>",
)  # fmt: skip
# tokens that end one speaker's turn, where a file does not name its own
TURN_ENDS = ENDS[:8]
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
_PREFIX = "tokenizer.ggml."
_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


class PretrainedTokenizer:
    """Encodes and decodes as the model's file says.

    model: "gpt2" or "llama". pre: llama.cpp's name of how words are cut (gpt2). tokens: the text of each id as GGUF
    spells it. token_types: GGUF's. scores: of a llama tokenizer. merges: "left right", of a gpt2 tokenizer.
    byte_length: int32 (V,), bytes each id stands for, 0 for control tokens. Ids that a file does not have are None:
    bos_id (opens a text), unknown_id; pad_id and turn_end_id fall back to eos_id.
    path: the folder it came from, or None.
    """

    def __init__(self, metadata: Mapping[str, Any], path: Path | None = None) -> None:
        """metadata: the `tokenizer.*` keys of a GGUF file. Raises FormatError naming what is not done here."""
        self.path = path
        self._metadata = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        self.name = str(metadata.get("general.name") or "")
        self._gives_template = False
        self.model = str(self._get("model"))
        if self.model not in _DEFAULT_IDS:
            raise FormatError(f"the tokenizer {self.model!r} is not read here", "known: gpt2, llama")
        self.pre = str(self._get("pre") or "default")
        if self.model == "gpt2" and self.pre not in WAYS:
            raise FormatError(f"words cut the way {self.pre!r} are not known here", f"known: {', '.join(WAYS)}")
        self._way = WAYS[self.pre] if self.model == "gpt2" else Way(())
        self.tokens: list[str] = self._get("tokens") or []
        self.vocab_size = len(self.tokens)
        self.token_types: list[int] = self._get("token_type") or [NORMAL] * self.vocab_size
        self.merges: list[str] = self._get("merges") or []
        self.scores: list[float] = self._get("scores") or []
        if not self.tokens or (self.model == "gpt2" and self._get("merges") is None):
            raise FormatError("the file has no whole tokenizer in it", "get a file with its tokenizer")
        self.dtype: type[np.uint16] | type[np.uint32] = np.uint16 if self.vocab_size <= 65536 else np.uint32
        self.chat_template: str = self._metadata.get("tokenizer.chat_template") or ""
        self.add_space_prefix = bool(self._flag("add_space_prefix", self.model == "llama"))
        self.add_bos = bool(self._flag("add_bos_token", self.model == "llama" or self._way.add_bos))
        self._set_ids()
        self._known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> "PretrainedTokenizer":
        """From Hugging Face's files. Raises FormatError naming what is missing or not done here."""
        from settle.data.tokenizer.tokenizer_files import read

        return cls(read(folder), folder)

    def with_template(self, template: str) -> "PretrainedTokenizer":
        """The same with a chat template, for a model that came without one."""
        made = PretrainedTokenizer(self._metadata | {"tokenizer.chat_template": template}, self.path)
        made.name = self.name
        made._gives_template = True
        return made

    def _get(self, key: str) -> Any:
        return self._metadata.get(_PREFIX + key)

    def _flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        return default if value is None else bool(value)

    def _set_ids(self) -> None:
        def named(name: str) -> int | None:
            found = self._get(f"{name}_token_id")
            default = _DEFAULT_IDS[self.model].get(name)
            return found if found is not None else default if (default or 0) < self.vocab_size else None

        self.bos_id: int | None = named("bos")
        self.unknown_id = named("unknown")
        eos, padding = named("eos"), named("padding")
        if eos is None:
            raise FormatError("the tokenizer has no token that ends a text", "get a file with its tokenizer")
        self.eos_id: int = eos
        self.pad_id: int = eos if padding is None else padding
        eot = self._get("eot_token_id")
        known = [t for t in TURN_ENDS if t in self._ids] if eot is None else []
        written = [t for t in known if t in self.chat_template]
        if eot is None and self.chat_template and not written:
            known = []  # the template ends a turn with something else: eos
        self.turn_end_id: int = eot if eot is not None else self._ids[(written or known)[0]] if known else self.eos_id

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens: they stand for no text, and text becomes one of them only when asked (`specials`)."""
        found = {t: i for i, (t, kind) in enumerate(zip(self.tokens, self.token_types, strict=True)) if kind in (2, 3)}
        return found | {token: self._ids[token] for token in ENDS if token in self._ids}

    @cached_property
    def _finders(self) -> tuple[Finder, Finder]:
        """What is found in plain text, and in a rendered chat."""
        control = self.special_tokens
        by_hand = {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.token_types, strict=True))
            if kind == USER_DEFINED and token not in control
        }
        strips: set[int] = set()
        if re.search("phi-?3", self.name, re.IGNORECASE):  # as llama.cpp decides it: GGUF does not say it
            plain = {"<unk>", "<s>", "<|endoftext|>"}
            strips = {i for token, i in (control | by_hand).items() if token not in plain}
        return Finder(by_hand, strips), Finder(control | by_hand, strips)

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Ids (N,) of a text, nothing added. Control tokens written in it stay text, unless `specials`: then it is a
        rendered chat."""
        ids: list[int] = []
        at_start = True
        for piece in self._finders[specials].split(text.encode("utf-8", "replace").decode("utf-8")):
            if isinstance(piece, int):
                ids.append(piece)
            elif self.model == "gpt2":
                for word in words(piece, self._way.patterns):
                    ids += self._known.get(word) or self._learn(word)
            else:
                prefix = SPACE if self.add_space_prefix and at_start else ""
                for word in self._spaced(prefix + piece.replace(" ", SPACE)):
                    ids += self._known.get(word) or self._learn(word)
            at_start = isinstance(piece, int)
        return np.array(ids, self.dtype)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, text: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) of many documents, each closed by eos, and the position after each: int64 (D,).

        `text` is UTF-8, each document followed by one byte of any value; `ends` (int64, (D,)) are those bytes' places.
        """
        parts, first = [], 0
        closing = np.array([self.eos_id], self.dtype)
        for end in ends.tolist():
            parts += [self.encode(text[first:end].decode("utf-8", "replace")), closing]
            first = end + 1
        lengths = np.array([len(part) for part in parts], np.int64)
        joined = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        return joined, np.cumsum(lengths)[1::2]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out; bytes that are no UTF-8 become U+FFFD. The space that encoding
        puts before a text is taken off again."""
        numbers = list(map(int, ids))
        raw = b"".join(map(self.token_bytes.__getitem__, numbers))
        if self.add_space_prefix and raw.startswith(b" ") and self.token_bytes[numbers[0]]:
            raw = raw[1:]
        return raw.decode("utf-8", "replace")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for; empty for control tokens."""
        control = set(self.special_tokens.values())
        return [
            b"" if i in control or kind == UNUSED else self._bytes_of(token, kind)
            for i, (token, kind) in enumerate(zip(self.tokens, self.token_types, strict=True))
        ]

    def _bytes_of(self, token: str, kind: int) -> bytes:
        if kind == BYTE:
            return bytes([int(token[3:5], 16)])
        if kind == USER_DEFINED:
            return token.encode()
        if self.model == "llama":
            return token.replace(SPACE, " ").encode()
        return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)

    @cached_property
    def byte_length(self) -> np.ndarray:
        return np.array([len(b) for b in self.token_bytes], np.int32)

    @cached_property
    def sha256(self) -> str:
        """Of everything that decides ids and rendering."""
        return sha256(json.dumps(self._metadata, sort_keys=True, default=str).encode()).hexdigest()

    def gguf_metadata(self) -> dict[str, Any]:
        """The `tokenizer.*` keys of a GGUF file, as they were read."""
        return dict(self._metadata)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as `transformers` reads them."""
        from settle.data.tokenizer.tokenizer_files import FILES, write

        if self.path is None:
            write(self, folder)
            return
        for name in FILES:
            if (self.path / name).exists():
                shutil.copyfile(self.path / name, folder / name)
        if self._gives_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def _learn(self, word: str) -> tuple[int, ...]:
        if self.model == "gpt2":
            ids = self._word_of_bytes("".join(map(BYTE_CHARACTERS.__getitem__, word.encode())))
        else:
            ids = self._word_of_characters(word)
        if len(word) <= LONGEST_REMEMBERED:
            if len(self._known) >= MOST_REMEMBERED:
                self._known = {}
            self._known[word] = ids
        return ids

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}

    def _word_of_bytes(self, word: str) -> tuple[int, ...]:
        known, ranks = self._ids, self._ranks
        if self._way.whole_words and word in known:
            return (known[word],)
        # a byte that the vocabulary lacks stands for nothing, as in llama.cpp
        parts = merged(list(word), lambda left, right: ranks.get(f"{left} {right}"))
        return tuple(known[part] for part in parts if part in known)

    def _word_of_characters(self, word: str) -> tuple[int, ...]:
        known, scores = self._ids, self.scores

        def rank(left: str, right: str) -> float | None:
            found = known.get(left + right)
            return None if found is None else -scores[found] if scores else 0.0

        ids: list[int] = []
        for part in merged(list(word), rank):
            if part in known:
                ids.append(known[part])
            else:
                ids += [self._byte_ids[b] for b in part.encode()]
        return tuple(ids)

    @cached_property
    def _byte_ids(self) -> list[int]:
        """The id that stands for each byte that no other token does."""
        missing = self.unknown_id if self.unknown_id is not None else self.eos_id
        return [self._ids.get(f"<0x{b:02X}>", self._ids.get(chr(b), missing)) for b in range(256)]

    def _spaced(self, text: str) -> list[str]:
        """Words that can be merged one by one: cut before a space, where no token goes on across that place."""
        return [word for word in self._space_cut.split(text) if word]

    @cached_property
    def _space_cut(self) -> re.Pattern[str]:
        bridges = {SPACE}
        for token in self.tokens:
            bare = token.lstrip(SPACE)
            if SPACE in bare:
                bridges |= {a for a, b in zip(bare, bare[1:], strict=False) if b == SPACE}
        return re.compile(f"(?<=[^{re.escape(''.join(bridges))}])(?={SPACE})")
