"""The two models of a comparison, made ready: served by llama.cpp to answer, and in this process to read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from settle.base.errors import FormatError
from settle.evaluate.compare.candidate import FileContender, LiveContender
from settle.formats.lora_gguf import DOWN, UP, read_lora
from settle.library.reference import ModelRef
from settle.machine import memory

if TYPE_CHECKING:
    from settle.model.decoder import Decoder
    from settle.model.pretrained import Pretrained

NUMBER_BYTES = 4  # what is read is compared in fp32


@contextlib.contextmanager
def contenders(base: ModelRef, tuned: ModelRef) -> Iterator[tuple[FileContender, FileContender]]:
    """Both models in llama.cpp: in one process where one is the other with an adapter over it."""
    names = (base.name, tuned.name if tuned.name != base.name else f"{tuned.name} (tuned)")
    if tuned.adapts(base) and tuned.adapter is not None:
        ours, theirs = FileContender.pair(tuned.weights, tuned.adapter, names)
        with theirs:
            yield ours, theirs
        return
    with (
        FileContender.open(base.weights, names[0], base.adapter) as ours,
        FileContender.open(tuned.weights, names[1], tuned.adapter) as theirs,
    ):
        yield ours, theirs


def readers(base: ModelRef, tuned: ModelRef) -> tuple[LiveContender, LiveContender] | None:
    """Both models in this process, which reads a text in one pass where llama.cpp takes one for each token.

    None where half of the memory that is free does not hold them, or where they are not known here: llama.cpp reads
    then.
    """
    from settle.model.pretrained import Pretrained

    try:
        opened = [Pretrained.open(ref.weights) for ref in ((tuned,) if tuned.adapts(base) else (base, tuned))]
        needed = sum(model.part.num_parameters for model in opened) * NUMBER_BYTES
        if needed > memory().available // 2:
            return None
        models = [model.load() for model in opened]
        for ref, source, model in zip((base, tuned)[-len(opened) :], opened, models, strict=True):
            if ref.adapter is not None:
                _adapt(model, source, ref.adapter)
    except FormatError:
        return None
    with_and_without = tuned.adapts(base)
    return (
        _reader(models[0], opened[0], base.name, bare=with_and_without),
        _reader(models[-1], opened[-1], tuned.name),
    )


def _reader(model: "Decoder", source: "Pretrained", name: str, bare: bool = False) -> LiveContender:
    return LiveContender(model, source.tokenizer, name, source.part.max_position_embeddings, bare)


def _adapt(model: "Decoder", source: "Pretrained", path: Path) -> None:
    """Put the LoRA of a GGUF file beside the linears it is for. Raises FormatError for one that cannot stand there."""
    import torch

    from settle.model.adapters import PREFIX, load
    from settle.model.adapters.lora import LoRA

    file = read_lora(path)
    ours = {theirs: name for name, theirs in source.part.gguf_names().items()}
    state = {}
    for name in (name.removesuffix(UP) for name in file.tensors if name.endswith(UP)):
        down, up = (torch.from_numpy(file.tensors[name + half].load()) for half in (DOWN, UP))
        if name not in ours or down.ndim != 2:
            raise FormatError(f"{path.name} adapts {name}, which is not done here", "llama.cpp may do it")
        module = PREFIX + ours[name].removesuffix(".weight")
        state[f"{module}.lora_A.weight"] = down
        state[f"{module}.lora_B.weight"] = source.part.from_gguf_tensor(ours[name], up)
    ranks = {len(tensor) for name, tensor in state.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise FormatError(f"{path.name} has pairs of {len(ranks)} ranks", "llama.cpp may serve it")
    targets = [n.removeprefix(PREFIX).removesuffix(".lora_A.weight") for n in state if n.endswith("lora_A.weight")]
    LoRA(rank=ranks.pop(), alpha=file.metadata["adapter.lora.alpha"], targets=targets).apply(model)
    load(model, state)
