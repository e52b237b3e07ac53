"""An adapter that lies over another base than its own, or that was exported without what it learned."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from settle.doctor.training.facts import TrainingFacts
from settle.doctor.training.rows import Served
from settle.doctor.weights.same_model import other_files
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import text
from settle.formats.lora_gguf import BASE_SHA256
from settle.library.resolve import all_refs
from settle.model.source import hash_of

MOST_HASHED = 4 << 30  # bytes of a base that a look reads
LEARNED_NATS, LEARNED_SHARE = 0.5, 0.15  # per token; of the first: training loss that fell by more, learned something
PART = 4  # of the steps, at the beginning and at the end, whose losses are compared


def wanted_base(served: Served) -> str | None:
    """The sha256 of the base that an adapter was trained on, where it lies over another file."""
    wanted = text(read_gguf(served.adapter).metadata, BASE_SHA256) if served.adapter else None
    if not wanted or served.weights.stat().st_size > MOST_HASHED:
        return None
    return wanted if hash_of(served.weights) != wanted else None


def find_base(sha256: str, beside: Path) -> Path | None:
    """The file with that hash, in the store or among the files of the same model; None where it is not here."""
    return next((path for path in _candidates(sha256, beside) if hash_of(path) == sha256), None)


def _candidates(sha256: str, beside: Path) -> Iterator[Path]:
    for ref in all_refs():
        if ref.kind == "model" and ref.source.kind == "gguf" and ref.source.recorded == sha256:
            yield ref.path
    yield from other_files(beside, read_gguf(beside))


def has_learned(facts: TrainingFacts) -> bool:
    """Whether the training loss fell by more than the batches differ."""
    number = len(facts.losses) // PART
    if not number:
        return False
    first, last = fmean(facts.losses[:number]), fmean(facts.losses[-number:])
    return first - last > max(LEARNED_NATS, LEARNED_SHARE * first)
