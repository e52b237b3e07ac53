"""Subjects to prune: every family's TINY with weights that all have a say, and a tiny model that was trained."""

import argparse
import inspect
import json
from pathlib import Path

import torch
from torch import Tensor

from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import TopExperts
from settle.model.pretrained import Pretrained
from settle.shrink.prunable_model import PrunableModel
from tests.model.architectures.cases import CASES, random_model
from tests.trained import trained

DENSE = [
    name
    for name, part in CASES.items()
    if part.options().is_plain
    and all(layer.experts is None and layer.recurrence is None for layer in part.options().layers)
]
POSITIONS = [0, 1, 5, 7, 11, 15, 23, 30]


def random_subject(part: Architecture, tokenizer) -> PrunableModel:
    """A model whose every tensor matters for what comes next."""
    part = part.with_fields(vocab_size=tokenizer.vocab_size)
    return PrunableModel.of_decoder(part, random_model(part), tokenizer)


def write_gguf(subject: PrunableModel, path: Path, dtype: str, metadata: dict | None = None) -> Path:
    return export_gguf(subject.part, subject.weights, subject.tokenizer, path, dtype, metadata)


def trained_subject() -> PrunableModel:
    """The tiny Llama that was trained on Python code."""
    tiny = trained()
    return PrunableModel.of_decoder(tiny.part, tiny.model, tiny.tokenizer)


def code() -> str:
    """Python code that the tiny model was not trained on."""
    return inspect.getsource(inspect.getmodule(json.JSONDecoder))


def more_code() -> str:
    return inspect.getsource(argparse)


def windows(subject: PrunableModel, number: int = 12, length: int = 32, text: str = "") -> list[list[int]]:
    ids = subject.tokenizer.encode(text or code()).tolist()
    return [ids[at : at + length] for at in range(0, number * length, length)]


def assert_ordinary(subject: PrunableModel, folder) -> None:
    """It is read back from Hugging Face's layout as it is, and does in llama.cpp what it does here."""
    again = Pretrained.open(subject.write(folder / "hf"))
    assert again.part == subject.part
    for name, tensor in subject.weights.items():
        assert torch.equal(again.read(name), tensor), name
    assert_in_llama_cpp(subject, folder)


def assert_in_llama_cpp(subject: PrunableModel, folder) -> None:
    """The file in llama.cpp says what the model here says; see tests/model/architectures about the bar."""
    path = write_gguf(subject, folder / "pruned.gguf", "f32")
    model = subject.build(trainable=False)
    with Engine(path, threads=1) as engine:
        ids = _decided(model, engine.num_vocab)
        positions = [p for p in POSITIONS if p < engine.context - 1]
        for row, position in zip(logprobs(model, ids, positions), positions, strict=True):
            found = engine.next_token_logprobs(ids[: position + 1])
            file = torch.tensor([found[i] for i in range(len(row))])
            torch.testing.assert_close(file, row, atol=0.03, rtol=0.002)


def _decided(model: Decoder, num_vocab: int) -> list[int]:
    """Random tokens at which no two experts are nearly as likely: a cache of half precision would swap them."""
    for seed in range(2, 12):
        ids = torch.randint(5, num_vocab, (31,), generator=torch.Generator().manual_seed(seed))
        gaps: list[float] = []

        def look(choice: TopExperts, chances: tuple[Tensor, ...], chosen: object, gaps: list[float] = gaps) -> None:
            likely = chances[0].sort(-1, descending=True).values
            gaps.append(float((likely[:, choice.top - 1] - likely[:, choice.top]).min()))

        hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, TopExperts)]
        with torch.no_grad():
            model(ids, torch.tensor([0, len(ids)]).int())
        for hook in hooks:
            hook.remove()
        if min(gaps, default=1.0) > 3e-4:
            return ids.tolist()
    raise AssertionError("no tokens found at which the experts are decided")
