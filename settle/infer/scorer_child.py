"""llama.cpp as a reader: whole distributions at every position. Run by `scorer.py` as a script, never imported by it.

Reads one JSON line of settings on stdin and answers one, `{"num_vocab": …}`, once the model is loaded. Then every line
is a window to read, or to write on from, and its answer a line that tells dtype and shape of the arrays whose bytes
follow it, or `{"error": …}`. Lives until its stdin closes (its parent is gone or wants it gone) or SIGTERM.

Logits are read where llama.cpp wrote them, some positions at a time, and never leave this process.
"""

import json
import os
import queue
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from settle.data.likelihoods import Compared, Likelihoods, Rows, compare, draws, summarise
from settle.infer.next_token import Sampler, describe, draw, joined

LOGITS_BYTES = 64 << 20  # of the positions that are computed together
LEAST_TOGETHER, MOST_TOGETHER = 16, 512  # positions


class Unreadable(Exception):
    """llama.cpp could not evaluate a window, or what it computed is no number."""


class ReadableModel(Protocol):
    """Whatever gives logits of windows of ids."""

    num_vocab: int

    def reopen(self, changes: Mapping[str, Any]) -> None:
        """Read with other settings of the context from now on."""

    def logits(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """Yield logits (P, V) after every token from `start` on but the last, in order, P at a time.

        Each array is valid only until the next.
        """

    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return logits (V,) after the last token, float32, only until the next call.

        What was read before is not read again where the ids begin alike.
        """


class Model:
    """A GGUF file in llama.cpp, on the processor.

    settings: path, context (tokens of the longest window), threads, and what `scorer.Overrides` has.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        self._lib, self._ffi = get_lib(), get_ffi()  # type: ignore[no-untyped-call]  # has no stubs
        self._lib.llama_backend_init()
        options = self._lib.llama_model_default_params()
        options.n_gpu_layers = 0
        options.check_tensors = True
        self._model = self._lib.llama_model_load_from_file(os.fsencode(settings["path"]), options)
        if self._model == self._ffi.NULL:
            raise Unreadable("error: the model was not loaded")
        self.num_vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        together = LOGITS_BYTES // (4 * self.num_vocab) // LEAST_TOGETHER * LEAST_TOGETHER
        self.together = min(max(together, LEAST_TOGETHER), MOST_TOGETHER)
        self._settings = dict(settings)
        self._context = self._open(self._settings)
        self._batch = self._lib.llama_batch_init(self.together, 0, 1)
        self._kept: list[int] = []  # the ids whose keys and values are kept

    def reopen(self, changes: Mapping[str, Any]) -> None:
        """Read with other settings of the context from now on; the weights stay as they are loaded."""
        self._lib.llama_free(self._context)
        self._settings |= changes
        self._kept, self._context = [], self._open(self._settings)

    def _open(self, settings: Mapping[str, Any]) -> object:
        options = self._lib.llama_context_default_params()
        options.n_ctx, options.n_seq_max = settings["context"], 1
        options.n_batch = options.n_ubatch = self.together
        options.n_threads = options.n_threads_batch = settings["threads"]
        options.type_k = options.type_v = settings["cache"]
        options.rope_freq_base = settings["rope_base"] or 0.0  # 0: as the file says
        options.rope_freq_scale = settings["rope_scale"] or 0.0
        options.no_perf = True
        opened = self._lib.llama_init_from_model(self._model, options)
        if opened == self._ffi.NULL:
            raise Unreadable("error: there is no room for its context, or it cannot be kept like that")
        if settings["adapter"]:
            self._adapt(opened, settings["adapter"])
        return opened

    def _adapt(self, context: object, path: str) -> None:
        adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if adapter == self._ffi.NULL:
            raise Unreadable("error: the adapter was not loaded")
        adapters, scales = self._ffi.new("struct llama_adapter_lora *[1]", [adapter]), self._ffi.new("float[1]", [1.0])
        if self._lib.llama_set_adapters_lora(context, adapters, 1, scales):
            raise Unreadable("error: the adapter does not fit the model")

    def logits(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """Yield logits, as `ReadableModel.logits`."""
        self._forget(0)
        for first in range(0, len(ids) - 1, self.together):
            logits = self._decode(ids[first : min(first + self.together, len(ids) - 1)], first, start - first)
            if len(logits):
                yield logits

    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return logits, as `ReadableModel.next_logits`."""
        pairs = enumerate(zip(self._kept, ids, strict=False))
        known = min(next((at for at, (a, b) in pairs if a != b), min(len(self._kept), len(ids))), len(ids) - 1)
        known = self._forget(known)
        logits = np.zeros((1, self.num_vocab), np.float32)
        for first in range(known, len(ids), self.together):
            piece = ids[first : first + self.together]
            logits = self._decode(piece, first, len(piece) - 1)
        self._kept = list(ids)
        row: np.ndarray = logits[0]
        return row

    def _forget(self, known: int) -> int:
        """Keep the first `known` tokens of what was read, or nothing where that cannot be; return how many."""
        memory = self._lib.llama_get_memory(self._context)
        if not known or not self._lib.llama_memory_seq_rm(memory, 0, known, -1):
            self._lib.llama_memory_clear(memory, True)
            known = 0
        self._kept = self._kept[:known]
        return known

    def _decode(self, piece: Sequence[int], first: int, skipped: int) -> np.ndarray:
        """Read some tokens, of which the first is token `first` of its window.

        Returns logits (P, V) after each of them but the first `skipped`.
        """
        batch = self._batch
        batch.n_tokens = len(piece)
        for i, token in enumerate(piece):
            batch.token[i], batch.pos[i], batch.logits[i] = token, first + i, i >= skipped or i == len(piece) - 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        failed = self._lib.llama_decode(self._context, batch)
        if failed:
            raise Unreadable(f"llama.cpp ended a window at token {first} with {failed}")
        rows = max(0, len(piece) - max(0, skipped))
        raw = self._ffi.buffer(self._lib.llama_get_logits(self._context), 4 * rows * self.num_vocab) if rows else b""
        return np.frombuffer(raw, np.float32).reshape(rows, self.num_vocab)


def placed(model: ReadableModel, ids: Sequence[int], start: int = 0) -> Iterator[tuple[np.ndarray, slice]]:
    """Logits as they are read, from position `start` on, and the positions that they are of."""
    begin = start
    for logits in model.logits(ids, start):
        yield logits, slice(begin, begin + len(logits))
        begin += len(logits)


def positions(model: ReadableModel, ids: Sequence[int], likeliest: int, first: int) -> list[np.ndarray]:
    """Return the arrays of `Positions` before token `first` of a window, before each later one, and after the last."""
    following, parts = np.asarray([*ids[1:], -1]), []
    for logits, at in placed(model, [*ids, 0], first - 1):
        parts.append(describe(logits, following[at], likeliest))
    return joined(parts).arrays()


def written(model: ReadableModel, request: Mapping[str, Any]) -> list[np.ndarray]:
    """Write the ids (N,) that follow a window, at most `most` of them, the last one a stop if one was drawn."""
    ids, sampler, random = list(request["ids"]), Sampler(*request["sampler"]), np.random.default_rng(request["seed"])
    first = len(ids)
    while len(ids) - first < request["most"] and not (len(ids) > first and ids[-1] in request["stops"]):
        ids.append(draw(model.next_logits(ids), sampler, random))
    return [np.asarray(ids[first:], np.int32)]


def answer(
    model: ReadableModel, request: dict[str, Any], pool: ThreadPoolExecutor, known: dict[str, Likelihoods]
) -> list[np.ndarray]:
    """Return the arrays that answer one line.

    Those of `Rows`, of `Compared` when it names a record and a window of it, of `Positions` when it asks for the
    likeliest tokens, or the ids that are written.
    """
    if "reopen" in request:
        model.reopen(request["reopen"])
        return []
    if "likeliest" in request:
        return positions(model, request["ids"], request["likeliest"], request["first"])
    if "most" in request:
        return written(model, request)
    if "folder" not in request:
        window, top = np.asarray(request["ids"], np.int32), request["top"]
        drawn, after = draws(window, request["sampled"]), window[1:]
        parts = [summarise(logits, after[at], drawn[at], top, pool) for logits, at in placed(model, request["ids"])]
        return list(vars(Rows.joined(parts)).values())
    folder = request["folder"]
    if folder not in known:
        known.clear()
        known[folder] = Likelihoods(Path(folder))
    window, rows = known[folder].window(request["window"]), known[folder].rows(request["window"])
    compared = [compare(rows[at], logits, window[1:][at], pool) for logits, at in placed(model, window.tolist())]
    return list(vars(Compared.joined(compared)).values())


def write(answers: BinaryIO, arrays: Sequence[np.ndarray]) -> None:
    """Arrays as a line of dtypes and shapes, and their bytes."""
    shapes = [[array.dtype.str, list(array.shape)] for array in arrays]
    answers.write(json.dumps({"arrays": shapes}).encode() + b"\n")
    for array in arrays:
        answers.write(np.ascontiguousarray(array).tobytes())
    answers.flush()


def read_lines(lines: "queue.SimpleQueue[bytes]") -> None:
    """Queues the parent's requests; leaves the process at the end of stdin, without llama.cpp's destructors."""
    while line := sys.stdin.buffer.readline():
        lines.put(line)
    os._exit(0)


def serve(load: Callable[[Mapping[str, Any]], ReadableModel]) -> None:
    """Load a model as the first line says, and answer the lines that follow."""
    # llama.cpp writes to stdout too, now and then: the answers have a channel of their own
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    settings = json.loads(lines.get())
    try:
        model = load(settings)
    except Unreadable as e:
        print(e, file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)
    answers.write(json.dumps({"num_vocab": model.num_vocab}).encode() + b"\n")
    answers.flush()
    openmp_wait = Path(__file__).parents[1] / "machine" / "openmp_wait.py"  # alone: its package imports much more
    runpy.run_path(str(openmp_wait))["adapt_waiting"](settings["threads"])
    known: dict[str, Likelihoods] = {}
    with ThreadPoolExecutor(settings["threads"]) as pool:
        while True:
            request = json.loads(lines.get())
            try:
                write(answers, answer(model, request, pool, known))
            except (Unreadable, ValueError) as e:
                answers.write(json.dumps({"error": str(e)}).encode() + b"\n")
                answers.flush()


if __name__ == "__main__":
    serve(Model)
