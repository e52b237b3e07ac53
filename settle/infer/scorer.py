"""A GGUF file's probabilities of given tokens, read by llama.cpp at its own speed in a child process.

The engine that serves answers one position at a request; reading a text that way is some hundred times slower. This is
the child of `scorer_child.py`, with llama.cpp from the package of the extra `shrink`.
"""

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from settle.base.errors import EngineError, UsageError
from settle.base.python_command import extra_command
from settle.data.likelihoods import SAMPLED, TOP, Compared, Likelihoods, LikelihoodsWriter, Rows, sizes
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import TOKENS, texts
from settle.formats.gguf.types import block_id
from settle.infer.child_process import Body, ChildModel, ChildProcess, Json, fitting_context
from settle.infer.next_token import GREEDY, LIKELIEST, Positions, Sampler
from settle.library.facts import longest_context
from settle.machine import num_threads

PACKAGE = "llama_cpp_py_sync"
Array = NDArray[np.generic]
LOADING_SECONDS = 300.0
OnTokens = Callable[[int], None]  # called with the number of tokens read after each window


def ignore_progress(tokens: int) -> None:
    """No progress is shown."""


CACHES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


class Overrides(NamedTuple):
    """What a file is read with instead of as it says.

    adapter: a LoRA in a GGUF file of its own, merged as it is read. cache: ggml's type of the keys and values that are
    kept. rope_base, rope_scale: of the rotary positions, as in `rope.freq_base` and 1 / `rope.scaling.factor`.
    """

    adapter: Path | None = None
    cache: str = "f16"
    rope_base: float | None = None
    rope_scale: float | None = None


AS_IT_IS = Overrides()


class Scorer(ChildModel["ScorerChild"]):
    """One model loaded in one child that reads windows of ids.

    context: tokens of the longest window, its last one, which is only predicted, aside; never more than the model was
    made for, unless `beyond`. The file is checked in Python before the child may open it. Raises UsageError when the
    package is missing, FormatError for a file that is not a sound GGUF, ResourceError when the context does not fit
    into memory, EngineError when llama.cpp refuses the file or dies.
    """

    def __init__(
        self,
        path: Path | str,
        context: int = 512,
        threads: int | None = None,
        overrides: Overrides = AS_IT_IS,
        beyond: bool = False,
    ) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise UsageError(f"measuring a file needs {PACKAGE.replace('_', '-')}", extra_command("shrink"))
        self.path = Path(path)
        self.metadata = read_gguf(self.path).metadata
        self.num_vocab = len(texts(self.metadata, TOKENS))
        longest = longest_context(self.path.name, self.metadata)
        if context > longest and not beyond:
            raise UsageError(
                f"{self.path.name} was made for {longest:,} tokens, and a window has {context:,}",
                f"measure on windows of at most {longest:,}",
            )
        self.context = fitting_context(self.path.name, self.metadata, context, 1, beyond)
        settings = {
            "path": str(self.path.resolve()),
            "context": self.context,
            "threads": num_threads(threads),
            "adapter": str(overrides.adapter.resolve()) if overrides.adapter else None,
            **_context_settings(overrides),
        }
        self._child = ScorerChild("scorer_child.py", settings, self.path.name)

    def start(self) -> None:
        super().start()
        self.num_vocab = self._child.num_vocab

    def reopen(self, overrides: Overrides) -> None:
        """Read with other overrides from now on, but for the adapter, without loading the weights again."""
        self._child.ask({"reopen": _context_settings(overrides)})

    def rows(self, ids: Sequence[int], top: int = TOP, sampled: int = SAMPLED) -> Rows:
        """Summarise the distributions over one window (L,), for all its tokens but the first."""
        self._require_window(ids)
        top, sampled = sizes(self.num_vocab, top, sampled)
        return Rows(*self._child.ask({"ids": list(map(int, ids)), "top": top, "sampled": sampled}))

    def positions(self, ids: Sequence[int], likeliest: int = LIKELIEST, first: int = 1) -> Positions:
        """Describe what may follow before token `first` of a window (L,) and before each later one, and after the last.

        L is `context` at most.
        """
        self._require_window([*ids, 0])
        request = {"ids": list(map(int, ids)), "likeliest": likeliest, "first": first}
        return Positions(*self._child.ask(request))

    def write(
        self, ids: Sequence[int], most: int, sampler: Sampler = GREEDY, seed: int = 0, stops: Sequence[int] = ()
    ) -> list[int]:
        """Write the ids that follow a window, at most `most` and as many as the context holds.

        The last one is a stop if one was drawn. The same seed draws the same.
        """
        self._require_window([*ids, 0])
        room = min(most, self.context - len(ids))
        request = {"ids": list(map(int, ids)), "most": room, "sampler": sampler, "seed": seed, "stops": list(stops)}
        (written,) = self._child.ask(request)
        return list(map(int, written))

    def likelihoods(
        self,
        windows: Iterable[Sequence[int]],
        folder: Path,
        about: Body | None = None,
        on_tokens: OnTokens = ignore_progress,
    ) -> Likelihoods:
        """Record this model over windows of ids in `folder`, in place of an earlier record.

        windows: each of at least two ids and at most `context` + 1. about: what is known of the model, kept in the
        record. Raises UsageError for a window that is too short, too long or has ids that the model does not know, and
        what `LikelihoodsWriter` raises.
        """
        windows = list(windows)
        positions = sum(len(ids) - 1 for ids in windows)
        about = {"model": self.path.name, **(about or {})}
        with LikelihoodsWriter(folder, self.num_vocab, about, positions, TOP, SAMPLED) as writer:
            for ids in windows:
                writer.append(ids, self.rows(ids))
                on_tokens(len(ids) - 1)
            return writer.close()

    def compare(
        self, reference: Likelihoods, on_tokens: OnTokens = ignore_progress, most_windows: int | None = None
    ) -> Compared:
        """Compare this model with a record of another one, over the record's windows, or the first `most_windows`.

        Raises UsageError when the two do not share a vocabulary's size: then only the text that they hold likely can be
        compared, in bits per byte.
        """
        if reference.num_vocab != self.num_vocab:
            raise UsageError(
                f"{self.path.name} knows {self.num_vocab:,} tokens, the reference {reference.num_vocab:,}: there is no "
                "divergence between their distributions",
                "compare bits per byte on the same text",
            )
        number = min(reference.num_windows, most_windows or reference.num_windows)
        parts = []
        for index in range(number):
            parts.append(self.compare_window(reference, index))
            on_tokens(len(parts[-1].kl))
        return Compared.joined(parts)

    def compare_window(self, reference: Likelihoods, index: int) -> Compared:
        """Compare this model with one window of the record, whose vocabulary is this model's."""
        self._require_window(reference.window(index))
        return Compared(*self._child.ask({"folder": str(reference.folder.resolve()), "window": index}))

    def logprobs(self, windows: Iterable[Sequence[int]], on_tokens: OnTokens = ignore_progress) -> list[Array]:
        """Log-probabilities of the tokens that came, (L − 1,) for each window; any vocabulary."""
        logprobs = []
        for ids in windows:
            logprobs.append(self.rows(ids, 1, 0).came_logprobs)
            on_tokens(len(ids) - 1)
        return logprobs

    def _require_window(self, ids: Sequence[int] | Array) -> None:
        # the last token is only predicted
        if not 2 <= len(ids) <= self.context + 1:
            raise UsageError(f"a window has {len(ids)} tokens", f"give windows of 2 to {self.context + 1:,} tokens")
        if not 0 <= min(ids) <= max(ids) < self.num_vocab:
            raise UsageError(
                f"a window has the token {max(ids)}, and {self.path.name} knows {self.num_vocab:,}",
                "give ids of this model's own tokenizer",
            )


def _context_settings(overrides: Overrides) -> Json:
    """Return the settings of a context. Raises UsageError for a type that keys and values are not kept in."""
    if overrides.cache not in CACHES:
        raise UsageError(f"keys and values are not kept as {overrides.cache}", f"known: {', '.join(CACHES)}")
    settings = {"cache": block_id(overrides.cache.upper())}
    return settings | {"rope_base": overrides.rope_base, "rope_scale": overrides.rope_scale}


class ScorerChild(ChildProcess):
    """The child of `scorer_child.py`, or of another script that answers the same lines."""

    num_vocab: int

    def __init__(self, script: str, settings: Body, name: str) -> None:
        # the child knows `settle` by the path that we know it by, whatever folder it is started in
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        super().__init__(script, settings, name, {"PYTHONPATH": os.pathsep.join(paths)}, LOADING_SECONDS)

    def start(self) -> None:
        self.num_vocab = int(self._begin()["num_vocab"])

    def ask(self, request: Body) -> list[Array]:
        """Return the arrays that answer one line. Raises EngineError."""
        if not self.is_open:
            raise EngineError("the scorer is not running", "use it inside `with Scorer(path) as scorer:`")
        try:
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
            line = self._stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            if answer is None:
                raise self.died()
            if "error" in answer:
                raise EngineError(f"{self.name} cannot be read: {answer['error']}", self.fix)
            return [self._array(dtype, shape) for dtype, shape in answer["arrays"]]
        except BrokenPipeError:
            raise self.died() from None

    def _array(self, dtype: str, shape: list[int]) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        data = self._stdout.read(size)
        if len(data) < size:
            raise self.died()
        return np.frombuffer(data, dtype).reshape(shape)
