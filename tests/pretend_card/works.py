"""What a card is given to do: each work returns numbers, which are the same wherever it is done."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from settle.base.event_log import Events
from settle.data.batches import Batch
from settle.infer.live_sampling import generate
from settle.model.adapters import Adapter
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.kv_cache import continued
from settle.model.layers.dequantize import UNPACK, dequantize, quantize_nf4
from settle.model.layers.frozen_weights import FrozenBlocks, FrozenNf4
from settle.train.checkpoint import Checkpoint, load_newest, save
from settle.train.evaluation import HeldOut, evaluate
from settle.train.objectives import Objective
from settle.train.objectives.dpo import DPO
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers import Optimizer
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon
from settle.train.state import LoopPlan, LoopState
from settle.train.trainer import Trainer

LENGTHS = (9, 12, 7, 15)  # of the segments of a batch: two buckets; in pairs, the better answer first
NEW_TOKENS = 3


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@dataclass
class Bench:
    """Where a work is done. counted: begins when everything is in place and has run once; what lasts is counted."""

    architecture: Architecture
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    counted: Callable[[], "object"] = field(default=_nothing)

    def model(self) -> Decoder:
        model = self.architecture.build(1, self.device)
        model.compute_dtype = self.dtype
        return model

    def batch(self, seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Batch:
        """Rows of which the first half is not supervised."""
        random, ends = np.random.default_rng(seed), np.cumsum(lengths)
        inputs, targets = random.integers(0, self.architecture.vocab_size, (2, sum(lengths)))
        for length, end in zip(lengths, ends, strict=True):
            targets[end - length : end - length // 2] = -1
        positions = np.concatenate([np.arange(n) for n in lengths])
        return Batch(inputs, targets, np.append(0, ends).astype(np.int32), positions)

    def trainer(self, model: Decoder, objective: Objective, optimizer: Optimizer, micro_batches: int = 2) -> Trainer:
        plan = LoopPlan(
            tokens_per_step=sum(LENGTHS) * micro_batches,
            micro_batches=micro_batches,
            sequence_length=max(LENGTHS),
            warmup_steps=1,
            decay_fraction=0.4,
            checkpoint_steps=10,
        )
        return Trainer(plan, model, objective, optimizer, _Stream(self))  # type: ignore[arg-type]  # it has no store

    def steps(self, trainer: Trainer) -> list[float]:
        """Two steps, the second of which is counted."""
        state = LoopState()
        first = trainer.take_step(state, 1.0)
        with self.counted():  # type: ignore[attr-defined]
            second = trainer.take_step(state, 1.0)
        return [first.loss, first.grad_norm, second.loss, second.grad_norm]


class _Stream:
    """Training batches without an end."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def at(self, position: int) -> Batch:
        return self.bench.batch(position)

    def epoch(self, position: int) -> float:
        return 0.0

    def rows_of(self, position: int) -> list[tuple[int, int, int]]:
        return [(n, 0, length) for n, length in enumerate(LENGTHS)]


def train(bench: Bench) -> list[float]:
    return bench.steps(bench.trainer(bench.model(), NextToken(), Muon()))


def full_tuning(bench: Bench) -> list[float]:
    """Every weight with AdamW, layers recomputed in the backward pass."""
    model = bench.model()
    model.recompute = 1
    return bench.steps(bench.trainer(model, NextToken(), AdamW()))


def _adapted(name: str, bench: Bench, objective: Objective | None = None, quantize: str | None = None) -> list[float]:
    model = bench.model()
    if quantize is not None:
        _quantize(model, quantize)
    Adapter.make(name, {"rank": 4, "dropout": 0.1}).apply(model, seed=2)
    model.train()
    return bench.steps(bench.trainer(model, objective or NextToken(), AdamW(lr=1e-3)))


def lora(bench: Bench) -> list[float]:
    return _adapted("lora", bench)


def dora(bench: Bench) -> list[float]:
    return _adapted("dora", bench)


def qlora(bench: Bench) -> list[float]:
    """LoRA over a base in NF4."""
    return _adapted("lora", bench, quantize="nf4")


def gguf_lora(bench: Bench) -> list[float]:
    """LoRA over a base in a GGUF file's blocks."""
    return _adapted("lora", bench, quantize="Q8_0")


def dpo(bench: Bench) -> list[float]:
    return _adapted("lora", bench, DPO())


def scores_in_float32(bench: Bench) -> list[float]:
    """A forward pass of a half type whose attention scores are in float32."""
    model = bench.model()
    model.float32_scores = range(len(model.layers))
    return bench.steps(bench.trainer(model, NextToken(), AdamW()))


def _quantize(model: Decoder, kind: str) -> None:
    """Keep the matrices of the layers in that type, as far as its blocks fill their rows."""
    for name, weight in list(model.weights().items()):
        if ".layers." not in name or not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        if kind == "nf4":
            if weight.numel() % 64 == 0:
                model.put(name, FrozenNf4(quantize_nf4(weight)))
        elif weight.shape[1] % 32 == 0:
            raw = gguf.quants.quantize(weight.detach().cpu().numpy(), gguf.GGMLQuantizationType[kind])
            model.put(name, FrozenBlocks(torch.from_numpy(raw), kind, tuple(weight.shape)).to(model.device))


def evaluation(bench: Bench) -> list[float]:
    held_out = HeldOut([bench.batch(seed) for seed in range(3)], np.ones(bench.architecture.vocab_size, int))
    model = bench.model()
    evaluate(model, NextToken(), held_out, 0, 0)
    with bench.counted():  # type: ignore[attr-defined]
        found = evaluate(model, NextToken(), held_out, 0, 0)
    return [found.loss, found.stderr]


def generation(bench: Bench) -> list[float]:
    """Sequences that grow from a cache, and a sample of a model that is being trained."""
    model = bench.model()
    prompts = [torch.arange(n).to(model.device) for n in (3, 5)]
    with bench.counted():  # type: ignore[attr-defined]
        grown = continued(model, prompts, [NEW_TOKENS, NEW_TOKENS - 1], [], temperature=0.0)
    tokens = [token for row in grown for token in row.tolist()]
    return [float(token) for token in (*tokens, *generate(model, [1, 2, 3], NEW_TOKENS, temperature=0.7))]


def checkpoint(bench: Bench) -> list[float]:
    """Save, load into another model, and take the same next step."""
    trainer = bench.trainer(bench.model(), NextToken(), Muon())
    state = LoopState()
    trainer.take_step(state, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        with bench.counted():  # type: ignore[attr-defined]
            best = trainer.weights()
            saved = Checkpoint(1, trainer.model.trainable(), trainer.stepper.state(), best, {"step": 1})
            save(Path(folder), saved, 10)
        found = load_newest(Path(folder), Events())
        assert found is not None
        resumed = bench.trainer(bench.model(), NextToken(), Muon())
        resumed.load(found)
    position = state.position
    own = trainer.take_step(state, 1.0)
    state.position = position
    again = resumed.take_step(state, 1.0)
    assert (own.loss, own.grad_norm) == (again.loss, again.grad_norm), "a resumed step is another one"
    return [own.loss, own.grad_norm]


WORKS: dict[str, Callable[[Bench], list[float]]] = {
    "train": train,
    "full tuning": full_tuning,
    "LoRA": lora,
    "DoRA": dora,
    "QLoRA": qlora,
    "LoRA over GGUF": gguf_lora,
    "DPO": dpo,
    "scores in float32": scores_in_float32,
    "evaluation": evaluation,
    "generation": generation,
    "checkpoint": checkpoint,
}


def dequantized(kind: str, device: str) -> tuple[Tensor, Tensor]:
    """(on a CPU, on the device) the numbers of random blocks of a GGUF type."""
    from settle.formats.gguf.types import ggml_type

    row = ggml_type(kind)
    raw = torch.from_numpy(np.random.default_rng(1).integers(0, 120, (4, 2 * row.block_bytes), dtype=np.uint8))
    shape = (4, 2 * row.block)
    return dequantize(raw, kind, shape), dequantize(raw.to(device), kind, shape)


GGUF_TYPES = (*UNPACK, "IQ2_XXS")  # the last one by gguf's own function
