"""The tokenizer: byte-level BPE trained on the user's own text, the same in training and in llama.cpp.

Two engines agree on every text because three things are fixed: the words a text is cut into (GPT-2's pattern, with
its character classes written out, see `character_classes`), the merges, and that text never becomes a special token.

Text is encoded at many times the speed of a tokenizer that walks word by word: each distinct word is merged once by
`tokenizers` and remembered; the words of a text are found by numpy, made distinct by arrow's hash table, and looked up.
Legend: B bytes, W words, D documents, N tokens, V vocabulary.
"""

import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from settle.base.errors import DataError
from settle.base.files import parse_json, write_atomic
from settle.data.tokenizer.character_classes import pattern, word_starts
from settle.data.tokenizer.vocabulary import BYTE_CHARACTERS, CONTROL, NORMAL, Metadata, Vocabulary

# words remembered before the memory is emptied: with their ids they take about 40 MB
MAX_WORDS = 200_000
# a longer word is hardly ever met twice
MAX_REMEMBERED_BYTES = 64
END_OF_TEXT, TURN_START, TURN_END, PADDING = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END, PADDING)
SMALLEST, LARGEST = 384, 32_768
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# the trainer counts a long text on one core, and many short ones on all
_TRAINING_PIECE = 32_768


class ByteBpeEncoder:
    """Encodes documents with one byte-level BPE model. Safe to use from several threads."""

    def __init__(self, model: models.BPE, end_id: int, byte_characters: dict[int, str], dtype: type) -> None:
        self._model = model
        self._end_id = end_id
        self._characters = byte_characters
        self._dtype = dtype
        self._lock = threading.Lock()
        self._forget()

    def encode(self, text: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (N,) of all documents, each closed by the end token, and the position after each: int64 (D,).

        `text` holds UTF-8 documents, each followed by one byte of any value at `ends` (int64, (D,)).
        """
        starts = word_starts(np.frombuffer(text, np.uint8), ends)
        offsets = np.append(starts, np.int32(len(text)))
        words = pa.Array.from_buffers(
            pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        ).dictionary_encode()
        which = words.indices.to_numpy(zero_copy_only=False)
        first, length, ids = self._look_up(words.dictionary.to_pylist())
        closing = np.searchsorted(starts, ends)
        lengths = length[which]
        lengths[closing] = 1
        stops = np.cumsum(lengths, dtype=np.int32)
        source = np.repeat(first[which] - (stops - lengths), lengths)
        source += np.arange(len(source), dtype=np.int32)
        out = ids[source]
        after = stops[closing].astype(np.int64)
        out[after - 1] = self._end_id
        return out, after

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}
        self._first = np.zeros(1 << 12, np.int32)
        self._length = np.zeros(1 << 12, np.int32)
        self._ids: np.ndarray = np.zeros(1 << 14, self._dtype)
        self._places = self._used = 0

    def _look_up(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for each word where its ids begin and how many they are, and the array they lie in."""
        with self._lock:
            if self._places > MAX_WORDS:
                self._forget()
            known = self._known
            new = [word for word in words if word not in known]
            if new:
                self._learn(new)
            places = np.fromiter(map(known.__getitem__, words), np.int64, len(words))
            result = self._first[places], self._length[places], self._ids
            for word in new:
                if len(word) > MAX_REMEMBERED_BYTES:
                    del known[word]
            return result

    def _learn(self, words: list[bytes]) -> None:
        characters, tokenize = self._characters, self._model.tokenize
        ids = [[t.id for t in tokenize(w.decode("latin-1").translate(characters))] for w in words]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat: np.ndarray = np.fromiter((i for word in ids for i in word), self._dtype, int(lengths.sum()))
        place, used = self._places, self._used
        self._first = _put(self._first, place, used + np.cumsum(lengths) - lengths)
        self._length = _put(self._length, place, lengths)
        self._ids = _put(self._ids, used, flat)
        self._places, self._used = place + len(words), used + len(flat)
        self._known.update(zip(words, range(place, self._places), strict=True))


def _put(array: np.ndarray, at: int, values: np.ndarray) -> np.ndarray:
    """Return `array` with `values` written at `at`, grown where needed; readers of the old array keep what they saw."""
    if at + len(values) > len(array):
        grown = np.zeros(max(2 * len(array), at + len(values)), array.dtype)
        grown[:at] = array[:at]
        array = grown
    array[at : at + len(values)] = values
    return array


def vocabulary_size(num_bytes: int) -> int:
    """Return the entries that suit a corpus of `num_bytes`: 1k at 1 MB, 4k at 10 MB, 16k at 100 MB, 32k from 330 MB on.

    A rare token is seen too seldom to be learned, a short one wastes steps; the exponent goes through the sizes that
    did best in trials of 1 and 10–30 MB.
    """
    ideal = 1024 * (max(num_bytes, 1) / 1e6) ** 0.6
    return int(min(max(round(ideal / 128) * 128, SMALLEST), LARGEST))


class ByteBpeTokenizer(Vocabulary):
    """A folder with tokenizer.json, tokenizer_config.json and the chat template; read by `transformers` too.

    path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Read a folder that `train` wrote. Raises DataError for any other."""
        self.path = Path(path)
        try:
            raw = parse_json((self.path / "tokenizer.json").read_text(encoding="utf-8"))
            config = parse_json((self.path / "tokenizer_config.json").read_text(encoding="utf-8"))
            vocabulary, merges = raw["model"]["vocab"], raw["model"]["merges"]
            by_id = {i: token for token, i in vocabulary.items()}
            pairs = [(m[0], m[1]) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]
            keys = {
                "model": "gpt2",  # llama.cpp's names for the algorithm and for this pattern
                "pre": "gpt-2",
                "tokens": [by_id[i] for i in range(len(by_id))],
                "token_type": [CONTROL if by_id[i] in SPECIALS else NORMAL for i in range(len(by_id))],
                "merges": [f"{left} {right}" for left, right in pairs],
                "bos_token_id": vocabulary[END_OF_TEXT],
                "eos_token_id": vocabulary[END_OF_TEXT],
                "eot_token_id": vocabulary[TURN_END],
                "padding_token_id": vocabulary[PADDING],
                "add_bos_token": False,
                "add_eos_token": False,
            }
            template = {"tokenizer.chat_template": config["chat_template"]}
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as e:
            raise DataError(f"{self.path} holds no tokenizer of settle's: {e!r}", "train again") from None
        super().__init__({f"tokenizer.ggml.{key}": value for key, value in keys.items()} | template)
        model = models.BPE(vocab=vocabulary, merges=pairs)
        self._encoder = ByteBpeEncoder(model, self.eos_id, BYTE_CHARACTERS, self.dtype)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, path: Path) -> "ByteBpeTokenizer":
        """Learn `vocab_size` entries (fewer when the texts have no more pairs to merge) and write the folder."""
        smallest = 256 + len(SPECIALS)
        if vocab_size < smallest:
            raise DataError(f"a vocabulary of {vocab_size} is too small", f"ask for {smallest} or more")
        engine = Engine(models.BPE())
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        # words are counted with the engine's own, faster pattern: which of a few rare characters is a letter
        # changes nothing in what is learned, and the merges alone are kept
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.train_from_iterator(_short(texts), trainer)
        engine.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern()), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "tokenizer.json", engine.to_str())
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PADDING,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            "chat_template": CHAT_TEMPLATE,
        }
        write_atomic(path / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
        return cls(path)

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Return the ids (N,) of a text.

        Special tokens written in it stay text, unless `specials`: then it is a rendered chat.
        """
        if specials:
            return np.array(self._engine.encode(text, add_special_tokens=False).ids, self.dtype)
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text."""
        if not texts:
            return []
        encoded = [text.encode("utf-8", "replace") for text in texts]
        ids, after = self.encode_documents(*closed(encoded))
        first = 0
        result = []
        for last in after.tolist():
            result.append(ids[first : last - 1])
            first = last
        return result

    def encode_documents(self, text: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (N,) of many documents, each closed by eos, and the position after each: int64 (D,).

        `text` is UTF-8, each document followed by one byte of any value; `ends` (int64, (D,)) are those bytes' places.
        """
        return self._encoder.encode(text, ends)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes.__getitem__, map(int, ids))).decode("utf-8", "replace")

    def gguf_metadata(self) -> Metadata:
        """Return the `tokenizer.*` keys of a GGUF file."""
        template = {"tokenizer.chat_template": self.chat_template} if self.chat_template else {}
        return {key: value for key, value in self.metadata.items() if key != "tokenizer.chat_template"} | template

    def save(self, folder: Path) -> None:
        """Copy the files to another folder."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(self.path / name, folder / name)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens: what the text itself taught is none, however it is spelled."""
        return {token: self.ids[token] for token in SPECIALS}

    @cached_property
    def _engine(self) -> Engine:
        return Engine.from_file(str(self.path / "tokenizer.json"))


def closed(documents: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    """Return documents as `encode_documents` wants them: one buffer, and where each one's closing byte lies."""
    ends = np.cumsum([len(d) + 1 for d in documents], dtype=np.int64) - 1
    return b"\0".join(documents) + b"\0", ends


def _short(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        start = 0
        while len(text) - start > _TRAINING_PIECE:
            cut = text.find("\n", start + _TRAINING_PIECE // 2, start + _TRAINING_PIECE) + 1
            cut = cut or start + _TRAINING_PIECE
            yield text[start:cut]
            start = cut
        yield text[start:]
