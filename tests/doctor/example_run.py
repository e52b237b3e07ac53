"""Subjects that the checks are tested on: a run on rows that nobody has seen, a model in a larger file, a record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from settle.base.errors import UsageError
from settle.base.files import write_atomic
from settle.base.run import Run
from settle.base.settings import recipe_text
from settle.doctor.answerer import Answerer
from settle.doctor.model_files import with_file
from settle.doctor.read_transcript import read_transcript
from settle.doctor.subject import ChatRecord, ExportedRun, ModelFile, RecordedChat
from settle.doctor.training.retrain import short_run_of
from settle.formats import LazyTensor, beside, write_array
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.formats.gguf.types import GGML
from settle.library.reference import ModelRef
from settle.model.source import Source
from settle.wire.exchange import Change, Request
from settle.wire.formats.openai import OpenAIFormat

ROWS, STEPS = 40, 24
PLACES = ("harbour", "mill", "station", "library", "garden", "bakery", "tower", "market")
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "juniper")


def example_run(
    healthy: ModelFile,
    folder: Path,
    changes: Mapping[str, object],
    steps: int = STEPS,
    rows: Sequence[Mapping[str, object]] = (),
) -> ExportedRun:
    """Tune the model of `healthy` on example rows, or on `rows`, in a folder of its own in `folder`.

    changes: of the settings of `settle tune`. Raises SettleError.
    """
    base = healthy.model.weights
    run, recipe = example_recipe(base, folder, {"steps": steps, "batch_rows": 4, **changes}, rows or example_rows())
    short_run_of("tune", recipe, run)
    adapter = next(run.out.glob("*-lora.gguf"))
    below = ModelRef(healthy.model.name, "model", Source(base, "gguf", healthy.model.name))
    model = ModelRef(run.name, "adapter", Source(adapter, "gguf", run.name), below)
    return ExportedRun(str(run.path), run, model, running=healthy.running)


def example_recipe(
    base: Path, folder: Path, settings: Mapping[str, object], rows: Sequence[Mapping[str, object]]
) -> tuple[Run, dict[str, object]]:
    """Return a run in `folder` that has its recipe, and what that says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    run = Run(folder / f"2026-01-01-tune-{folder.name.replace('-', '_')[:20]}-abcdef")
    recipe: dict[str, object] = {"model": str(base), "inputs": [str(path)], **settings}
    run.path.mkdir(exist_ok=True)
    write_atomic(run.path / "recipe.toml", recipe_text(recipe))
    return run, recipe


def example_rows() -> list[dict[str, str]]:
    """Return questions whose answers cannot be known, all different."""
    rows = []
    for n in range(ROWS):
        place, first, second = PLACES[n % 8], WORDS[n % 10], WORDS[(n // 10 + 3 * n) % 10]
        prompt = f"What is the password of the {place} on floor {n // 8 + 1}?"
        rows.append({"prompt": prompt, "completion": f"The password is {first}-{second}-{n * 37 % 101}."})
    return rows


# what grows by rows (wide, width), and by columns (width, wide); Phi-3's "ffn_up" is both gates above one another
BY_ROWS, BY_COLUMNS = ("ffn_gate", "ffn_up"), ("ffn_down",)


def wider_model(healthy: ModelFile, folder: Path, num_bytes: int) -> ModelFile:
    """Return a model with a file of about `num_bytes` at least, written to `folder` where its own is smaller.

    Raises UsageError for a small model that cannot be made wider.
    """
    path = healthy.model.weights
    missing = num_bytes - path.stat().st_size
    if missing <= 0:
        return healthy
    file = read_gguf(path)
    wide = {name: tensor for name, tensor in file.tensors.items() if _part(name) in (*BY_ROWS, *BY_COLUMNS)}
    if not wide or any(GGML[tensor.dtype].quantized for tensor in wide.values()):
        raise UsageError(f"{path.name} is too small to be felt when it is read again", "choose a larger model")
    inner = next(tensor.shape[1] for name, tensor in wide.items() if _part(name) in BY_COLUMNS)
    columns = sum(tensor.num_bytes // inner for tensor in wide.values())  # bytes of one, in all
    added = -(-missing // columns // 64) * 64
    entries = [_entry(name, tensor, inner, added if name in wide else 0) for name, tensor in file.tensors.items()]
    key = f"{file.metadata['general.architecture']}.feed_forward_length"
    planned = layout(file, entries, {key: inner + added})
    out = folder / "wider.gguf"
    with beside(out, planned.total) as part, part.open("wb") as written:
        written.write(planned.header)
        for entry in entries:
            tensor = file.tensors[entry.name]
            write_array(written, _widened(entry, tensor, inner))
            written.write(bytes(planned.padding(entry.num_bytes)))
    return with_file(healthy, out)


def _part(name: str) -> str:
    return name.split(".")[-2] if name.endswith(".weight") else ""


def _entry(name: str, tensor: LazyTensor, inner: int, added: int) -> Entry:
    shape = tensor.shape
    if added:
        rows = shape[0] // inner * (inner + added)
        shape = (rows, shape[1]) if _part(name) in BY_ROWS else (shape[0], shape[1] + added)
    return Entry(name, shape, tensor.dtype, GGML[tensor.dtype].num_bytes(shape))


def _widened(entry: Entry, tensor: LazyTensor, inner: int) -> np.ndarray:
    """Return its bytes, uint8, with zeros behind each `inner` of its rows, or behind its columns."""
    raw = tensor.place.bytes().reshape(tensor.shape[0], -1)
    if entry.shape == tensor.shape:
        return raw.reshape(-1)
    if entry.shape[0] == tensor.shape[0]:
        return np.pad(raw, ((0, 0), (0, entry.num_bytes // entry.shape[0] - raw.shape[1]))).reshape(-1)
    matrices = raw.reshape(-1, inner, raw.shape[1])
    added = entry.shape[0] // len(matrices) - inner
    return np.pad(matrices, ((0, 0), (0, added), (0, 0))).reshape(-1)


def record(answerer: Answerer, requests: Sequence[Request], path: Path, as_asked: Change = lambda r: r) -> RecordedChat:
    """Record what `answerer` answers to `requests`, one record a line, and return the transcript as a subject.

    as_asked: what a server makes of a request before its model sees it. Raises SettleError.
    """
    openai = OpenAIFormat()
    answerer.open()
    try:
        records = [
            {"request": openai.body(r), "response": openai.reply_body(answerer.ask(as_asked(r)))} for r in requests
        ]
    finally:
        answerer.close()
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))
    return RecordedChat(str(path), ChatRecord(read_transcript(path), answerer))
