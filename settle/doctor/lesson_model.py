"""The model that a lesson is measured on: its words, its prompts, and the same model in fewer bits."""

import contextlib
import importlib.util
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from settle.base.errors import FormatError
from settle.base.python_command import extra_command
from settle.formats.gguf import read_gguf
from settle.infer.next_token import Positions
from settle.infer.scorer import PACKAGE
from settle.infer.token_reader import TokenReader
from settle.library.reference import ModelRef
from settle.model.source import Source
from settle.shrink.types.mixes import mix_types
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf

CONTEXT = 1024  # tokens that a lesson takes at most
MIX = "Q2_K"
LARGEST_SHARE = 0.9  # of the file as it is, for what counts as fewer bits
_WORD = re.compile(" [a-z]{5,8}")


@dataclass(frozen=True)
class Case:
    """How likely a model holds an answer in a place.

    ids: what stands before. answer: the ids whose probability is measured. temperature: that they are drawn at.
    is_small: whether the model in fewer bits is asked.
    """

    ids: Sequence[int]
    answer: Sequence[int]
    temperature: float = 1.0
    is_small: bool = False


class LessonModel:
    """A model under a lesson; use it as a context manager. Raises what `TokenReader` raises."""

    def __init__(self, model: ModelRef, threads: int | None = None) -> None:
        self._model, self._threads = model, threads
        self.reader = TokenReader(model, CONTEXT, threads)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self.reader)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def words(self) -> list[str]:
        """Words that are one token behind a space, five to eight plain letters long, by their id."""
        spelled = (raw.decode("ascii", "replace") for raw in self.reader.tokenizer.token_bytes)
        return list(dict.fromkeys(text[1:] for text in spelled if _WORD.fullmatch(text)))

    def case(self, prompt: str, answer: str) -> Case:
        """Return a text in two parts, as ids. Where a token reaches across their border, it belongs to the answer."""
        before, ids = self.reader.encode(prompt), self.reader.encode(prompt + answer)
        pairs = enumerate(zip(before, ids, strict=False))
        border = next((at for at, (a, b) in pairs if a != b), min(len(before), len(ids)))
        return Case(ids[:border], ids[border:])

    def last(self, ids: Sequence[int], number: int) -> list[int]:
        """Return the last of some ids, behind the token that opens a text where the model expects one."""
        if not self.reader.tokenizer.add_bos:
            return list(ids[-number:])
        return self.reader.opened(ids[len(ids) - number + 1 :])

    def positions(self, ids: Sequence[int], first: int, is_small: bool = False) -> Positions:
        """Return how likely the model, or the same in fewer bits, holds the ids from place `first` on."""
        return (self.small if is_small else self.reader).positions(ids, first)

    @cached_property
    def lacks_fewer_bits(self) -> str:
        """Why there is no form of it in fewer bits, as a sentence; "" where there is one."""
        if importlib.util.find_spec(PACKAGE) is None:
            return f"making a smaller file needs `{extra_command('shrink')}`"
        if self._file.kind != "gguf":
            return f"it is no GGUF file: `settle pull {self._file.path}` makes one of it"
        try:
            return "" if self._kinds else f"its file is about as small as {MIX} already"
        except FormatError as e:
            return e.what

    @cached_property
    def small(self) -> TokenReader:
        """A reader of this model quantized to MIX, in a file that is gone with this object. Raises SettleError."""
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="settle-lesson-")))
        path = quantize_gguf(
            self._file.path, folder / f"{MIX}.gguf", self._kinds, requantize=True, threads=self._threads
        )
        source = Source(path, "gguf", f"{self._model.name} in {MIX}")
        base = self._model.base
        whole = replace(self._model, base=replace(base, source=source)) if base else replace(self._model, source=source)
        return self._open.enter_context(TokenReader(whole, CONTEXT, self._threads))

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """The type of each tensor in MIX; none where the file would hardly be smaller."""
        file = read_gguf(self._file.path)
        kinds = {name: choice.kind for name, choice in mix_types(file, MIX).items()}
        is_smaller = file_bytes(file, kinds) < LARGEST_SHARE * self._file.path.stat().st_size
        return kinds if is_smaller else {}

    @property
    def _file(self) -> Source:
        return self._model.base.source if self._model.base else self._model.source
