"""What each choice of the recipe is worth: one change at a time against the same baseline, paired by seed.

    python bench/recipe.py TEXT [--vocab 1024] [--steps 60 | --passes 12] [--seeds 1] [--only NAME …]

One thread, so that the time told is processor time and other programs hardly disturb it. For each variant: bits per
byte on the last tenth of TEXT (less is better), the change against the baseline, and a step's processor time;
`averaged` is of the averaged weights at the end. With --passes the baseline has the weight decay and the length of the
decay that a run of so many passes over the text is planned with.
"""

import argparse
import json
import math
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
from settle.plan.settings import TrainingSettings
from settle.train.evaluation import HeldOut, evaluate
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers import Optimizer
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon
from settle.train.state import LoopPlan, LoopState, Schedule
from settle.train.trainer import Trainer

BASE: dict[str, Any] = {"width": 128, "layers": 4, "head_dim": 64, "context": 128, "tokens": 2048, "decay": 0.4}
OF_MANY_PASSES = {"tokens": 1024, "decay": 0.25}
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
    "no weight decay": {"rates": {"weight_decay": 0.0}},
    "weight decay / 2": {"forgetting": 0.5},
    "weight decay x 2": {"forgetting": 2.0},
    "decay of any length": {"decay_passes": math.inf},
    "average over a fifth": {"average": 0.2},
}


def optimizer(c: dict[str, Any], passes: float, steps_per_pass: float) -> Optimizer:
    """Make the rule, with the weight decay of so many passes where none was chosen."""
    rule = (Muon if c["rule"] == "muon" else AdamW)(**c["rates"])
    if not passes or "weight_decay" in c["rates"] or not isinstance(rule, Muon):
        return rule
    suited = rule.against_memorizing(passes, steps_per_pass)
    return suited.model_copy(update={"weight_decay": suited.weight_decay * c["forgetting"]})


def train(corpus: Corpus, steps: int, passes: float, seed: int, choices: dict[str, Any]) -> dict[str, float]:
    """Bits per byte on the whole held-out text, and the quickest step's seconds of processor time.

    passes: over the text, which decide the number of steps where they are not 0.
    """
    usual = TrainingSettings()
    own = {
        "rule": "muon",
        "rates": {},
        "tied": False,
        "dtype": torch.bfloat16,
        "forgetting": 1.0,
        "average": usual.average,
    }
    c = {**own, "decay_passes": usual.decay_passes, **BASE, **(OF_MANY_PASSES if passes else {}), **choices}
    steps_per_pass = corpus.train.num_tokens / c["tokens"]
    steps = round(passes * steps_per_pass) or steps * BASE["tokens"] // c["tokens"]
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
    plan = LoopPlan(
        tokens_per_step=c["tokens"], sequence_length=c["context"], warmup_steps=5, max_steps=steps,
        decay_fraction=c["decay"], checkpoint_steps=steps, average=c["average"], seed=seed,
    )  # fmt: skip
    batches = Batches(corpus.train, c["context"], c["tokens"], seed)
    trainer = Trainer(plan, model, NextToken(), optimizer(c, passes, steps_per_pass), batches)
    decay = max(1, round(min(steps * c["decay"], c["decay_passes"] * steps_per_pass)))
    state, quickest = LoopState(schedule=Schedule(5).decay_from(steps - decay, decay)), math.inf
    while state.step < steps:
        began = time.process_time()
        trainer.take_step(state, state.schedule.multiplier(state.step))
        quickest = min(quickest, time.process_time() - began)
        state.step += 1
    held_out = HeldOut(list(held_out_batches(corpus.held_out, c["context"], 8192, None)), corpus.tokenizer.byte_length)
    bits = []
    for weights in (trainer.weights(), trainer.average):
        trainer.take_weights(weights)
        bits.append(evaluate(model, trainer.objective, held_out, steps, steps * c["tokens"]).bits_per_byte or math.nan)
    return {"bits_per_byte": bits[0], "averaged": bits[1], "step_seconds": quickest}


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
    parser.add_argument("--passes", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = folder
        corpus = split_corpus(asked.text, Path(folder), asked.vocab)
        baseline: list[float] = []
        for name in ["baseline", *(asked.only or VARIANTS)]:
            made = [
                train(corpus, asked.steps, asked.passes, seed, VARIANTS.get(name, {})) for seed in range(asked.seeds)
            ]
            reached = [figures["bits_per_byte"] for figures in made]
            baseline = baseline or reached
            change = statistics.mean(a - b for a, b in zip(reached, baseline, strict=True))
            averaged = statistics.mean(figures["averaged"] for figures in made)
            shown = {"variant": name, "bits_per_byte": round(statistics.mean(reached), 4), "change": round(change, 4)}
            shown |= {"averaged": round(averaged, 4), "step_ms": round(1e3 * min(m["step_seconds"] for m in made), 1)}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
