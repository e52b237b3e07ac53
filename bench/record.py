"""Record real training runs: a constant-rate trunk, evaluated as the product evaluates, and ends that decay from it.

    python bench/record.py TEXTS OUT [--only NAME …] [--seed N] [--latest TOKENS]
    python bench/record.py TEXTS OUT --until-settled --latest 3000000   small texts of many kinds, for the settled rule
    python bench/record.py TEXTS OUT --repeated --latest 1500000        texts of many passes, to judge forecasts by
    python bench/record.py TEXTS OUT --overfitted --latest 800000       the same with more parameters, for the fit
    python bench/record.py TEXTS OUT --large                            models of a million parameters and more

TEXTS: the folder that bench/corpora.py made. Appends one JSON file a run under OUT; a run whose file exists is left
out. One thread. What each run is: `RUNS`; it is planned by the product's own plan, with its rate, batch and warm-up.

* trunk: warm-up, then constant; (tokens, loss, stderr, losses of the sample's blocks) of the run's own held-out sample,
  at the product's evaluations. A run with a number of tokens ends where its decay begins. One without is watched until
  `LATEST` by the product's rule at each of `TOLERANCES`, and followed for `FOLLOWED` times the last of its stops.
* stops: what the rule said, and where, by tolerance. stop: that of the smallest tolerance at which it stopped, or null.
* ends: losses on a larger held-out sample, the same for all. "probe": a short run with a warm-up and a decay of its
  own, as the product probes before a run. "end": a run of that many tokens by the plan's budgeted schedule. "stop": the
  decay of a run that has settled, branched off the trunk at every fourfold of the tokens, at the stop and at the end.
* ngrams: [tokens, loss] of n-gram models over ever more of the text, on the larger sample.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.data.batches import held_out_batches
from settle.data.prepare import Corpus, prepare
from settle.plan.loss_law import counted
from settle.plan.probe import DECAY, probe_steps
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import plan_training
from settle.train.evaluation import Evaluation, HeldOut, evaluate
from settle.train.live_run import EVALUATION_BLOCK, LiveRun
from settle.train.settled import Settled, decay_tokens, next_evaluation
from settle.train.state import LoopState
from settle.train.training_plan import TrainingPlan
from settle.train.watch import Watch

SAMPLE = 12_288  # tokens of the larger held-out sample
SHARES = (1 / 4, 1.0)  # of a run with a number of tokens: lengths of its decayed ends
FIRST_STOP, APART = 24, 4  # the trunk is branched at that share of LATEST, and after so many times more
TOLERANCES = (0.005, 0.01, 0.015)  # of runs without a number of tokens; the first is the product's default
LATEST, FOLLOWED = 2_000_000, 3.2  # tokens until which a stop is waited for; times the stop

# (corpus, size, tokens; None: until it has settled), ordered so that every beginning of the list is a mixture
RUNS = [
    ("maths", "60k", None), ("go", "300k", "700k"), ("czech", "60k", None), ("manuals_de", "1M", "400k"),
    ("dutch", "60k", None), ("sayings_de", "300k", "700k"), ("korean", "60k", None), ("rust", "300k", "700k"),
    ("russian_faq", "60k", None), ("instructions", "300k", "700k"), ("lisp", "2M", "300k"), ("spanish", "60k", None),
    ("locales", "300k", "700k"), ("sayings_pl", "600k", "500k"), ("devil", "60k", None), ("jargon", "1M", "400k"),
    ("git_doc", "300k", "700k"), ("finnish", "60k", None), ("german", "300k", "700k"), ("codes", "300k", "500k"),
    ("french", "60k", None), ("lintian", "500k", "600k"), ("arabic", "300k", "700k"), ("handbook_ar", "60k", None),
    ("vim_help", "300k", "1.5M"), ("sayings_zh", "60k", None), ("sayings_cs", "300k", "700k"), ("maths", "1M", "400k"),
]  # fmt: skip

# (corpus, seed) of runs of the smallest size without a number of tokens, in the order in which they are made. Written
# down before any of them was run: texts small or repetitive enough to settle early, other seeds, larger texts.
UNTIL_SETTLED = [
    ("finnish", 1), ("spanish", 1), ("codes", 1), ("devil", 1), ("sayings_zh", 1), ("unicode", 1), ("french", 1),
    ("handbook_ar", 1), ("pronounced", 1), ("sayings_de", 1), ("dutch", 2), ("korean", 2), ("sayings_it", 1),
    ("german", 1), ("russian_faq", 2), ("jargon", 1), ("sayings_cs", 1), ("czech", 2), ("tool_calls", 1),
    ("shakespeare", 1), ("handbook", 1), ("instructions", 1), ("finnish", 2), ("spanish", 2),
]  # fmt: skip
SMALLEST = "60k"

# (corpus, size) of runs without a number of tokens over small texts, which they see many times. Written down, in this
# order, before any of them was run: their corpora are in no other list, and no fit reads them.
REPEATED = [
    ("vera", "60k"), ("manuals_ja", "60k"), ("octave", "30k"), ("latin", "60k"), ("portuguese", "60k"),
    ("ruby", "150k"), ("sayings_br", "60k"), ("russian_dev", "30k"), ("prolog", "60k"), ("foldoc", "60k"),
    ("manuals_pl", "60k"), ("italian", "60k"), ("sayings_eo", "60k"), ("apt_ja", "60k"), ("swedish", "60k"),
    ("manuals_sv", "150k"), ("sayings_bg", "30k"),
]  # fmt: skip

# (corpus, size): the same with as many parameters as a plan has at most for so little text, for the fit
OVERFITTED = [("dutch", "300k"), ("finnish", "200k"), ("devil", "400k"), ("french", "150k"), ("spanish", "300k")]

# (corpus, size, tokens)
LARGE = [("manuals_fr", "1M", "1.5M"), ("boost", "1M", "1.5M")]


def record(text: Path, size: str, tokens: str | None, seed: int, latest: int = LATEST) -> dict[str, object]:
    """One run, as its file holds it."""
    asked = {"size": size, "threads": 1, "seed": seed} | ({"tokens": tokens} if tokens else {})
    settings = resolve(TrainingSettings, [("asked", asked)])
    corpus = prepare([str(text)], settings.value.data, Events())
    plan = plan_training(settings.value, settings.origin, corpus, 0.0)
    began = time.process_time()
    sample = HeldOut(
        list(held_out_batches(corpus.selection, plan.loop.sequence_length, EVALUATION_BLOCK, SAMPLE)),
        corpus.tokenizer.byte_length,
    )
    ends = [_probed(plan, corpus, sample)]
    trunk = Trunk(LiveRun.build(plan, corpus), sample, latest)
    trunk.follow()
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
        **trunk.to_json(ends),
        "cpu_seconds": round(time.process_time() - began),
    }  # fmt: skip


@dataclass
class Trunk:
    """A run at the constant rate, and the ends that branch off it."""

    job: LiveRun
    sample: HeldOut
    latest: int  # tokens until which a stop is waited for
    history: list[Evaluation] = field(default_factory=list)
    ends: list[dict[str, object]] = field(default_factory=list)
    stops: dict[float, dict[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trainer, self.state = self.job.trainer(), LoopState()
        self.held_out = HeldOut(self.job.selection, self.job.tokenizer.byte_length)
        self.floor = Watch(self.trainer, self.held_out, Events()).settled.floor

    def to_json(self, probes: Sequence[dict[str, object]] = ()) -> dict[str, object]:
        """Return the losses, and what the rule said."""
        return {
            "floor": round(self.floor or 0.0, 5),
            "stop": self.stops[min(self.stops)] if self.stops else None,
            "stops": self.stops,
            "ends": sorted([*probes, *self.ends], key=lambda e: float(str(e["tokens"]))),
            "trunk": [[e.tokens, round(e.loss, 5), round(e.stderr, 5), [round(b, 4) for b in e.blocks]]
                      for e in self.history],
        }  # fmt: skip

    def follow(self) -> None:
        """To its end: that of its budget, or well past its stop."""
        job, loop, state = self.job, self.job.plan.loop, self.state
        per_step, at_stops = loop.tokens_per_step, self.latest // FIRST_STOP
        most = loop.max_steps or self.latest // per_step
        lengths = [round(most * share) for share in SHARES] if loop.max_steps else []
        branches = {max(1, round(steps * (1 - loop.decay_fraction))): steps for steps in lengths}
        most = max(branches, default=most)
        while True:
            seen = state.step * per_step
            last = self.history[-1].tokens if self.history else -1
            if last < 0 or seen >= self._next_evaluation(last) or state.step == most:
                e = evaluate(job.model, job.objective, self.held_out, state.step, seen)
                self.history.append(e)
                if not branches and seen <= self.latest and self._stopped(seen):
                    self._branch(state.step + round(decay_tokens(seen) / per_step), "stop")
                    everywhere = len(self.stops) == len(TOLERANCES)  # then there is nothing left to wait for
                    most = max(0 if everywhere else most, round(FOLLOWED * state.step))
            if state.step in branches:
                self._branch(branches[state.step], "end")
            if seen >= at_stops or (state.step == most and not branches):
                self._branch(state.step + round(decay_tokens(seen) / per_step), "stop")
                at_stops *= APART
            if state.step == most:
                return
            self.trainer.take_step(state, min(1.0, (state.step + 1) / (loop.warmup_steps + 1)))
            state.step += 1

    def _next_evaluation(self, last: int) -> int:
        return next_evaluation(last, self.held_out.num_tokens, self.job.plan.loop.evaluation_cost)

    def _stopped(self, seen: int) -> bool:
        """Whether the product's rule ends the run at the last evaluation, at a tolerance at which it has not before."""
        since, stopped = self.job.plan.loop.warmup_steps * self.job.plan.loop.tokens_per_step, False
        for tolerance in (t for t in TOLERANCES if t not in self.stops):
            rule = Settled(tolerance, since, self.floor)
            if rule.asks(self.history) and (judgement := rule.judge(self.history)).state != "improving":
                self.stops[tolerance] = {"state": judgement.state, "tokens": seen, "why": judgement.why}
                print(f"    {tolerance:.1%}: {judgement.state} after {seen:,} tokens", flush=True)
                stopped = True
        return stopped

    def _branch(self, until: int, kind: str) -> None:
        """Decay to zero from here to step `until`; then restore everything."""
        trainer, state, step, position = self.trainer, self.state, self.state.step, self.state.position
        weights = trainer.weights()
        kept = {k: v.clone() for k, v in trainer.stepper.state().items()}
        while state.step < until:
            warm = min(1.0, (state.step + 1) / (self.job.plan.loop.warmup_steps + 1))
            trainer.take_step(state, warm * (until - state.step) / (until - step + 1))
            state.step += 1
        self.ends.append(_end(self.job, self.sample, state, kind) | {"from": step * self.job.plan.loop.tokens_per_step})
        self.job.model.load_trainable(weights)
        trainer.stepper.restore(kept)
        state.step, state.position = step, position


def _probed(plan: TrainingPlan, corpus: Corpus, sample: HeldOut) -> dict[str, object]:
    """Return the product's own probe (settle/plan/probe.py): short, with a warm-up and a decay of its own."""
    steps = probe_steps(plan.loop.max_steps or 50 * plan.loop.warmup_steps)
    job = LiveRun.build(plan, corpus)
    trainer, state = job.trainer(), LoopState()
    warmup, decay = min(plan.loop.warmup_steps, max(1, steps // 4)), round(DECAY * steps)
    while state.step < steps:
        left = min(1.0, (steps - state.step) / (decay + 1))
        trainer.take_step(state, min(1.0, (state.step + 1) / (warmup + 1)) * left)
        state.step += 1
    return _end(job, sample, state, "probe")


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
    return [(tokens, losses[-1]) for tokens, losses in counted(corpus)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latest", type=int, default=LATEST, help="tokens until which a stop is waited for")
    for name in ("--until-settled", "--repeated", "--overfitted", "--large"):
        parser.add_argument(name, action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = [(name, size, tokens, asked.seed) for name, size, tokens in RUNS]
    if asked.until_settled:
        runs = [(name, SMALLEST, None, seed) for name, seed in UNTIL_SETTLED]
    elif asked.repeated:
        runs = [(name, size, None, asked.seed) for name, size in REPEATED]
    elif asked.overfitted:
        runs = [(name, size, None, asked.seed) for name, size in OVERFITTED]
    elif asked.large:
        runs = [(name, size, tokens, asked.seed) for name, size, tokens in LARGE]
    for name, size, tokens, seed in runs:
        out = asked.out / f"{name}-{size}-{tokens or 'settled'}-{seed}.json"
        if out.exists() or (asked.only and name not in asked.only):
            continue
        row = record(asked.texts / f"{name}.txt", size, tokens, seed, asked.latest)
        out.write_text(json.dumps(row))
        print(f"{time.strftime('%H:%M:%S')} {out.name}: {row['cpu_seconds']} s, {row['stops']}", flush=True)


if __name__ == "__main__":
    main()
