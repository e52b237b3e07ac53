"""What each choice of the recipe is worth: one change at a time against the same baseline, paired by seed.

    python bench/recipe.py TEXT [--vocab 1024] [--steps 60] [--seeds 1] [--only NAME …]

One thread, so that the time told is processor time and other programs hardly disturb it. For each variant: bits per
byte on the last tenth of TEXT (less is better), the change against the baseline, and a step's processor time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from settle.base.event_log import Events
from settle.data.batches import Batches, held_out_batches
from settle.data.prepare import Corpus, prepare
from settle.data.settings import DataSettings
from settle.machine import keep_freed_memory
from settle.model.architectures.llama import Llama
from settle.train.evaluation import HeldOut, evaluate
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon
from settle.train.state import Schedule

BASE: dict[str, Any] = {"width": 128, "layers": 4, "head_dim": 64, "context": 128, "tokens": 2048, "decay": 0.4}
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw alone": {"rule": "adamw"},
    "lr x 1.5": {"rates": {"lr": 0.03}},
    "lr x 2": {"rates": {"lr": 0.04}},
    "lr / 2": {"rates": {"lr": 0.01}},
    "table_lr / 2.5": {"rates": {"table_lr": 0.02}},
    "head_lr x 2.5": {"rates": {"head_lr": 0.01}},
    "momentum 0.9": {"rates": {"momentum": 0.9}},
    "ns_steps 5": {"rates": {"ns_steps": 5}},
    "ns_steps 3": {"rates": {"ns_steps": 3}},
    "beta1 0.9": {"rates": {"beta1": 0.9}},
    "beta2 0.99": {"rates": {"beta2": 0.99}},
    "batch / 2, same tokens": {"tokens": 1024},
    "batch x 2, same tokens": {"tokens": 4096},
    "context / 2": {"context": 64},
    "half the layers": {"layers": 2},
    "heads of 32": {"head_dim": 32},
    "width x 1.5": {"width": 192},
    "tied tables": {"tied": True},
    "decay over all": {"decay": 1.0},
    "decay 0.2": {"decay": 0.2},
    "float32": {"dtype": torch.float32},
}


def train(corpus: Corpus, total_tokens: int, seed: int, choices: dict[str, Any]) -> tuple[float, float]:
    """Bits per byte on the whole held-out text, and the quickest step's seconds of processor time."""
    c = {"rule": "muon", "rates": {}, "tied": False, "dtype": torch.bfloat16, **BASE, **choices}
    heads = c["width"] // c["head_dim"]
    model = Llama(
        hidden_size=c["width"],
        intermediate_size=round(c["width"] * 8 / 3 / 64) * 64,
        num_hidden_layers=c["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=c["head_dim"],
        vocab_size=corpus.tokenizer.vocab_size,
        tie_word_embeddings=c["tied"],
    ).build(seed)
    model.compute_dtype = c["dtype"]
    rule = Muon(**c["rates"]) if c["rule"] == "muon" else AdamW(**c["rates"])
    stepper, objective = rule.bind(model), NextToken()
    batches = Batches(corpus.train, c["context"], c["tokens"], seed)
    steps = total_tokens // c["tokens"]
    decay = max(1, round(steps * c["decay"]))
    schedule = Schedule(5).decay_from(steps - decay, decay)
    quickest = float("inf")
    for step in range(steps):
        batch = batches.at(step)
        began = time.process_time()
        model.zero_grad(set_to_none=True)
        loss, count = objective.batch_loss(model, batch)
        (loss / count).backward()
        stepper.step(schedule.multiplier(step))
        quickest = min(quickest, time.process_time() - began)
    held_out = HeldOut(list(held_out_batches(corpus.held_out, c["context"], 8192, None)), corpus.tokenizer.byte_length)
    return evaluate(model, objective, held_out, steps, total_tokens).bits_per_byte, quickest


def split_corpus(text: Path, folder: Path, vocab: int) -> Corpus:
    content = text.read_bytes()
    cut = int(len(content) * 0.9)
    (folder / "train.txt").write_bytes(content[:cut])
    (folder / "held_out.txt").write_bytes(content[cut:])
    settings = DataSettings(held_out_from=folder / "held_out.txt", clean=False, vocab_size=vocab)
    return prepare([str(folder / "train.txt")], settings, Events())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = folder
        corpus = split_corpus(asked.text, Path(folder), asked.vocab)
        total = asked.steps * BASE["tokens"]
        baseline: list[float] = []
        for name in ["baseline", *(asked.only or VARIANTS)]:
            made = [train(corpus, total, seed, VARIANTS.get(name, {})) for seed in range(asked.seeds)]
            reached = [bits for bits, _ in made]
            baseline = baseline or reached
            change = statistics.mean(a - b for a, b in zip(reached, baseline, strict=True))
            shown = {"variant": name, "bits_per_byte": round(statistics.mean(reached), 4), "change": round(change, 4)}
            print(json.dumps(shown | {"step_ms": round(1e3 * min(s for _, s in made), 1)}), flush=True)


if __name__ == "__main__":
    main()
