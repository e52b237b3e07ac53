"""A tiny random model of a family with a tiny vocabulary, its files, and text for it: what abilities are tried on."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from settle.data.settings import DataSettings
from settle.data.tokenizer.byte_bpe import SMALLEST, ByteBpeTokenizer
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.families import family_named
from tests.model.architectures.cases import random_model

WORDS = ["lorem", "ipsum", "dolor", "sit", "amet", "vokma", "tudri", "rensel"]
DOCUMENTS, ROWS, CONTEXT = 24, 48, 256
STUDENT = {"intermediate_size": 32, "moe_intermediate_size": 8}


@dataclass(frozen=True)
class Text:
    """What every family reads. folder: of its files."""

    folder: Path
    tokenizer: ByteBpeTokenizer
    reading: ClassVar[DataSettings] = DataSettings(vocab_size=SMALLEST)

    @classmethod
    def make(cls, folder: Path) -> "Text":
        (folder / "text").mkdir()
        for number in range(DOCUMENTS):
            (folder / "text" / f"{number}.txt").write_text(f"{number} {_words(number, 150)}\n")
        rows = [{"prompt": f"{_words(i, 2)}:", "completion": " ".join(_words(i, 2).split()[::-1])} for i in range(ROWS)]
        labelled = [{"text": _words(i, 3), "label": ("sea", "wind")[i % 2]} for i in range(ROWS)]
        for name, lines in (("rows", rows), ("labelled", labelled)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tokenizer = ByteBpeTokenizer.train([_words(0, 3000)], SMALLEST, folder / "tokenizer")
        return cls(folder, tokenizer)

    @property
    def plain(self) -> Path:
        """Texts, for a training from nothing."""
        return self.folder / "text"

    @property
    def texts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.plain.iterdir())]

    @property
    def rows(self) -> Path:
        """Prompts and completions."""
        return self.folder / "rows.jsonl"

    @property
    def labelled(self) -> Path:
        """Texts with a label."""
        return self.folder / "labelled.jsonl"


def _words(seed: int, number: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=number))


@dataclass(frozen=True)
class Subject:
    """A family's smallest model."""

    family: str
    text: Text
    folder: Path

    @cached_property
    def part(self) -> Architecture:
        tokenizer = self.text.tokenizer
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": CONTEXT}
        part = family_named(self.family).TINY.with_fields(**sizes, **ids)
        # what a file says of windows that llama.cpp has not: no more context than one of them
        is_narrow = part.gguf_metadata()[f"{part.gguf_family}.context_length"] < part.max_position_embeddings
        return part.with_fields(sliding_window=part.max_position_embeddings) if is_narrow else part

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        return _weights(self.part)

    @cached_property
    def model(self) -> Decoder:
        model = self.part.skeleton("cpu")
        model.load_state_dict(dict(self.weights))
        return model.eval()

    @cached_property
    def hf(self) -> Path:
        """The model as a folder in Hugging Face's layout."""
        folder = self.folder / f"{self.family}-hf"
        return export_safetensors(self.part, self.weights, self.text.tokenizer, folder, "f32", {})

    @cached_property
    def student(self) -> Path:
        """A smaller model of the family, as `hf`."""
        own = {name: getattr(self.part, name) for name in STUDENT if name in type(self.part).model_fields}
        sizes = {name: STUDENT[name] if STUDENT[name] < value else value // 2 for name, value in own.items()}
        part, folder = self.part.with_fields(**sizes), self.folder / f"{self.family}-student"
        return export_safetensors(part, _weights(part), self.text.tokenizer, folder, "f32", {})

    def gguf(self, dtype: str) -> Path:
        """The model as a GGUF file."""
        path = self.folder / f"{self.family}-{dtype}.gguf"
        if not path.exists():
            export_gguf(self.part, self.weights, self.text.tokenizer, path, dtype, {"name": "tiny"})
        return path


def _weights(part: Architecture) -> dict[str, Tensor]:
    """Random, and such that each has a say; the tables less, so that a text is no less likely than by guessing."""
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    found = dict(random_model(part).named_parameters())
    return {name: p.detach() * (2 / 3 if name in tables else 1) for name, p in found.items()}
