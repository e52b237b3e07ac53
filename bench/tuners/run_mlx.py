"""MLX-LM's LoRA trainer on the bench's work, one step at a time. Run by bench/tune_speed.py.

Settings of its own: `dtype` of the weights (float32 or bfloat16), `grad_checkpoint`. Its trainer sorts rows by length
and shuffles batches; here it is handed batches in the order of the file, padded as it pads. It does not clip.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from pace import Pace, arguments

pace, asked = Pace(), arguments()
PAD_TO = 32  # as its own batches


class Batches:
    """Batches in the order of the rows, each made when the bench says so."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []

    def __call__(self, dataset: Any, batch_size: int, **_: Any) -> Iterator[tuple[mx.array, mx.array]]:
        for first in range(0, len(dataset) - batch_size + 1, batch_size):
            rows = [dataset[first + i] for i in range(batch_size)]
            longest = max(len(ids) for ids, _ in rows)
            ids = np.zeros((batch_size, 1 + PAD_TO * -(-longest // PAD_TO)), np.int32)
            for i, (row, _) in enumerate(rows):
                ids[i, : len(row)] = row
            # its mask runs to the given length inclusive, which counts one token past the row: give it one less
            spans = [(offset, len(row) - 1) for row, offset in rows]
            self.counts.append((sum(len(r) for r, _ in rows), sum(len(r) - offset for r, offset in rows)))
            pace.begin()
            yield mx.array(ids), mx.array(spans)


class Steps(TrainingCallback):
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        pace.end()
        tokens, supervised = self.batches.counts[-1]
        pace.report(train_info["train_loss"], tokens, supervised)


def rate(step: mx.array) -> mx.array:
    """Return the rate of a step, the first of which is 0."""
    return asked.lr * mx.minimum(1.0, (step + 1) / asked.warmup)


def main() -> None:
    mx.set_default_device(mx.cpu)
    mx.random.seed(1)
    model, tokenizer = load(str(asked.model))
    model.set_dtype(getattr(mx, asked.settings.get("dtype", "float32")))
    model.freeze()
    linear_to_lora_layers(
        model, len(model.layers), {"rank": asked.rank, "scale": asked.alpha / asked.rank, "dropout": 0.0}
    )
    rows = [json.loads(line) for line in asked.rows.read_text().splitlines()][: asked.batch * asked.steps]
    data = CacheDataset(ChatDataset(rows, tokenizer, mask_prompt=True))
    optimizer = optim.AdamW(learning_rate=rate, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, bias_correction=True)
    names = ["mlx", "mlx-cpu", "mlx-lm", "transformers"]
    trained = sum(v.size for _, v in tree_flatten(model.trainable_parameters()))
    pace.ready(versions={n: importlib.metadata.version(n) for n in names}, trained_parameters=trained)
    batches = Batches()
    train(
        model=model,
        optimizer=optimizer,
        train_dataset=data,
        args=TrainingArgs(
            batch_size=asked.batch,
            iters=asked.steps,
            steps_per_report=1,
            steps_per_save=10**9,
            adapter_file=str(asked.work / "adapters.safetensors"),
            grad_checkpoint=asked.settings.get("grad_checkpoint", False),
        ),
        iterate_batches=batches,
        training_callback=Steps(batches),
    )
    pace.done()


if __name__ == "__main__":
    main()
