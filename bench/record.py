"""Record real training runs: a constant-rate run, evaluated densely, and runs of many lengths that end decayed.

    python bench/record.py TEXTS OUT [--only NAME …]

TEXTS: the folder that bench/corpora.py made. Appends one JSON file a run under OUT; a run whose file exists is left
out. One thread. What each run is: `RUNS`. It is planned by the product's own plan.

* trunk: warm-up, then constant; (tokens, loss, stderr, losses of the sample's blocks) of the run's own held-out sample,
  at 3 % more tokens each time, or where evaluating would take an eighth of the time, later.
* ends: a run of T tokens whose rate falls to zero over its last part, T from 1/64 of the run to all of it. Of an
  eighth and more it branches off the trunk; shorter ones are trained by themselves as the probe before a run is, with
  a warm-up of its own. Each ends with a larger held-out sample, the same for all lengths.
* ngrams: [tokens, loss] of n-gram models over ever more of the text, on the larger sample.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.data.batches import held_out_batches
from settle.data.prepare import Corpus, prepare
from settle.plan.ngrams import ngram_curve
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import plan_training
from settle.train.evaluation import HeldOut, evaluate
from settle.train.live_run import EVALUATION_BLOCK, LiveRun
from settle.train.state import LoopState
from settle.train.training_plan import TrainingPlan

SAMPLE = 12_288  # tokens of the larger held-out sample
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
BRANCHED = 1 / 8  # shares from here on branch off the trunk
PROBE_DECAY = 0.4  # as in settle/plan/probe.py
GROWTH, COST = 0.03, 0.12  # of the trunk's evaluations
FEWEST = 16  # steps of the shortest end

# Sizes and lengths; each corpus gets one by its number in every round, longer ones in later rounds.
SHAPES = [
    ("60k", "100k", 512), ("60k", "200k", 1024), ("100k", "80k", 512), ("60k", "60k", 512), ("100k", "200k", 1024),
    ("100k", "120k", 512), ("60k", "150k", 1024),
]  # fmt: skip
LARGE = {"sayings_ru": ("60k", "600k", 1024), "python": ("200k", "300k", 1024)}


def runs(names: list[str]) -> Iterator[tuple[str, str, str, int, int]]:
    """(corpus, size, tokens, tokens of a batch, seed): one of each corpus, larger ones among them, then a second."""
    order = sorted(names)
    random.Random(16).shuffle(order)
    for round_ in range(3):
        for i, name in enumerate(order):
            yield (name, *SHAPES[(i + 3 * round_) % len(SHAPES)], round_)
            if (round_, i) == (0, 20):
                yield from ((name, *shape, 7) for name, shape in LARGE.items() if name in names)


def record(text: Path, size: str, tokens: str, batch: int, seed: int) -> dict[str, object]:
    """One run, as its file holds it."""
    asked = {"size": size, "tokens": tokens, "batch_tokens": batch, "threads": 1, "seed": seed}
    settings = resolve(TrainingSettings, [("asked", asked)])
    corpus = prepare([str(text)], settings.value.data, Events())
    plan = plan_training(settings.value, settings.origin, corpus, 0.0)
    began = time.process_time()
    sample = HeldOut(
        list(held_out_batches(corpus.selection, plan.loop.sequence_length, EVALUATION_BLOCK, SAMPLE)),
        corpus.tokenizer.byte_length,
    )
    trunk, ends = _trunk(plan, corpus, sample)
    return {
        "corpus": text.stem,
        "seed": seed,
        "kind": "train",
        "parameters": plan.num_parameters,
        "vocabulary": corpus.tokenizer.vocab_size,
        "unique": corpus.train.num_tokens,
        "bytes": corpus.train.num_bytes,
        "held_out_tokens": plan.held_out_tokens,
        "sample_tokens": sample.num_tokens,
        "dtype": plan.dtype,
        "optimizer": plan.optimizer_name,
        "loop": {
            k: v for k, v in plan.loop.model_dump().items() if k in ("tokens_per_step", "sequence_length",
            "warmup_steps", "max_steps", "decay_fraction")
        },
        "ngrams": [[n, round(loss, 5)] for n, loss in _ngrams(corpus)],
        "ends": sorted([*_short(plan, corpus, sample), *ends], key=lambda e: float(str(e["tokens"]))),
        "trunk": trunk,
        "cpu_seconds": round(time.process_time() - began),
    }  # fmt: skip


def _trunk(plan: TrainingPlan, corpus: Corpus, sample: HeldOut) -> tuple[list[list[object]], list[dict[str, object]]]:
    """The evaluations at the constant rate, and the ends that branch off."""
    job = LiveRun.build(plan, corpus)
    loop, trainer, state = plan.loop, job.trainer(), LoopState()
    assert loop.max_steps is not None
    lengths = {round(loop.max_steps * share): share for share in SHARES if share >= BRANCHED}
    branches = {max(1, round(steps * (1 - loop.decay_fraction))): steps for steps in lengths}
    own = HeldOut(job.selection, job.tokenizer.byte_length)
    trunk, ends, due = [], [], 0.0
    while True:
        if trainer.tokens(state) >= due or state.step == loop.max_steps:
            seen = trainer.tokens(state)
            e = evaluate(job.model, job.objective, own, state.step, seen)
            trunk.append([seen, round(e.loss, 5), round(e.stderr, 5), [round(b, 4) for b in e.blocks]])
            due = seen + max(GROWTH * seen, own.num_tokens / (3 * COST))
        if state.step in branches:
            weights = trainer.weights()
            kept = {k: v.clone() for k, v in trainer.stepper.state().items()}
            step, position, steps = state.step, state.position, branches[state.step]
            while state.step < steps:
                trainer.take_step(state, (steps - state.step) / (steps - step + 1))
                state.step += 1
            ends.append(_end(job, sample, state, "branch"))
            job.model.load_trainable(weights)
            trainer.stepper.restore(kept)
            state.step, state.position = step, position
        if state.step == loop.max_steps:
            return trunk, ends
        trainer.take_step(state, min(1.0, (state.step + 1) / (loop.warmup_steps + 1)))
        state.step += 1


def _short(plan: TrainingPlan, corpus: Corpus, sample: HeldOut) -> Iterator[dict[str, object]]:
    """Runs as the probe before a run is: short, with a warm-up and a decay of their own."""
    assert plan.loop.max_steps is not None
    for steps in {round(plan.loop.max_steps * share) for share in SHARES if share < BRANCHED}:
        if steps < FEWEST:
            continue
        job = LiveRun.build(plan, corpus)
        trainer, state = job.trainer(), LoopState()
        warmup, decay = min(plan.loop.warmup_steps, max(1, steps // 4)), round(PROBE_DECAY * steps)
        while state.step < steps:
            left = min(1.0, (steps - state.step) / (decay + 1))
            trainer.take_step(state, min(1.0, (state.step + 1) / (warmup + 1)) * left)
            state.step += 1
        yield _end(job, sample, state, "alone")


def _end(job: LiveRun, sample: HeldOut, state: LoopState, kind: str) -> dict[str, object]:
    tokens = state.step * job.plan.loop.tokens_per_step
    e = evaluate(job.model, job.objective, sample, state.step, tokens)
    own = evaluate(job.model, job.objective, HeldOut(job.selection, sample.byte_length), state.step, tokens)
    return {
        "tokens": tokens,
        "kind": kind,
        "loss": round(e.loss, 5),
        "stderr": round(e.stderr, 5),
        "blocks": [round(b, 4) for b in e.blocks],
        "own": round(own.loss, 5),
    }


def _ngrams(corpus: Corpus) -> list[tuple[float, float]]:
    return ngram_curve(corpus.train.tokens, corpus.selection.tokens, corpus.tokenizer.vocab_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in asked.texts.glob("*.txt")]
    for name, size, tokens, batch, seed in runs(names):
        out = asked.out / f"{name}-{size}-{tokens}-{seed}.json"
        if out.exists() or (asked.only and name not in asked.only):
            continue
        row = record(asked.texts / f"{name}.txt", size, tokens, batch, seed)
        out.write_text(json.dumps(row))
        print(f"{time.strftime('%H:%M:%S')} {out.name}: {row['cpu_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
