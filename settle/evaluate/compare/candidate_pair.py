"""The two models of a comparison, made ready: served by llama.cpp to answer, and in this process to read."""

import contextlib
from collections.abc import Iterator

from settle.base.errors import FormatError
from settle.evaluate.compare.candidate import FileModel, LiveModel
from settle.library.reference import ModelRef
from settle.machine import memory
from settle.model.decoder import Decoder
from settle.model.load_adapter import adapter_of_gguf, attach
from settle.model.pretrained import Pretrained

NUMBER_BYTES = 4  # what is read is compared in fp32


@contextlib.contextmanager
def both_in_llamacpp(base: ModelRef, tuned: ModelRef) -> Iterator[tuple[FileModel, FileModel]]:
    """Both models in llama.cpp: in one process where one is the other with an adapter over it."""
    names = (base.name, tuned.name if tuned.name != base.name else f"{tuned.name} (tuned)")
    if tuned.adapts(base) and tuned.adapter is not None:
        ours, theirs = FileModel.pair(tuned.weights, tuned.adapter, names)
        with theirs:
            yield ours, theirs
        return
    with (
        FileModel.open(base.weights, names[0], base.adapter) as ours,
        FileModel.open(tuned.weights, names[1], tuned.adapter) as theirs,
    ):
        yield ours, theirs


def readers(base: ModelRef, tuned: ModelRef) -> tuple[LiveModel, LiveModel] | None:
    """Both models in this process, which reads a text in one pass where llama.cpp takes one for each token.

    None where half of the memory that is free does not hold them, or where they are not known here: llama.cpp reads
    then.
    """
    try:
        opened = [Pretrained.open(ref.weights) for ref in ((tuned,) if tuned.adapts(base) else (base, tuned))]
        needed = sum(model.part.num_parameters for model in opened) * NUMBER_BYTES
        if needed > memory().available // 2:
            return None
        models = [model.load() for model in opened]
        for ref, source, model in zip((base, tuned)[-len(opened) :], opened, models, strict=True):
            if ref.adapter is not None:
                attach(model, adapter_of_gguf(ref.adapter, source.part))
    except FormatError:
        return None
    with_and_without = tuned.adapts(base)
    return (
        _reader(models[0], opened[0], base.name, bare=with_and_without),
        _reader(models[-1], opened[-1], tuned.name),
    )


def _reader(model: Decoder, source: Pretrained, name: str, bare: bool = False) -> LiveModel:
    return LiveModel(model, source.tokenizer, name, source.part.max_position_embeddings, bare)
