"""Record real training runs: a constant-rate trunk, evaluated as the product evaluates, and ends that decay from it.

    python bench/record.py TEXTS OUT [--only NAME …] [--seed N]

TEXTS: the folder that bench/corpora.py made. Appends one JSON file a run under OUT; a run whose file exists is left
out, so that several processes share the work. One thread. What each run is: `RUNS`, written down before any of them
was run; it is planned by the product's own plan, with its size, rate, weight decay, batch and warm-up.

* trunk: warm-up, then constant; (tokens, loss, stderr, losses of the sample's blocks) of the run's own held-out sample,
  at the product's evaluations. A run with a number of tokens ends where its decay begins. One without is watched until
  `LATEST` by the product's rule at each of `TOLERANCES`, and followed for `FOLLOWED` times the last of its stops.
* stops: what the rule said, and where, by tolerance. stop: that of the smallest tolerance at which it stopped, or null.
* ends: losses on a larger held-out sample, the same for all. "probe": a short run with a warm-up and a decay of its
  own, as the product probes before a run. "end": a run of that many tokens by the plan's budgeted schedule. "stop": the
  decay of a run that has settled, branched off the trunk at every fourfold of the tokens, at the stop and at the end.
  Each decays as the product does: from the best weights where the loss has risen; kept is the best of the decayed, the
  averaged and the earlier weights by the run's own sample. decayed: what the decay alone reached.
* ngrams: [tokens, loss] of n-gram models over ever more of the text, on the larger sample. packed: what LZMA leaves.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.data.batches import held_out_batches
from settle.data.prepare import Corpus, prepare
from settle.plan.loss_law import counted
from settle.plan.probe import DECAY, probe_steps
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import plan_training
from settle.train.checkpoint import Checkpoint
from settle.train.evaluation import Evaluation, HeldOut, evaluate
from settle.train.live_run import EVALUATION_BLOCK, LiveRun
from settle.train.settled import decay_tokens, next_evaluation
from settle.train.state import LoopState
from settle.train.training_plan import TrainingPlan
from settle.train.watch import Watch

SAMPLE = 12_288  # tokens of the larger held-out sample
SHARES = (1 / 4, 1.0)  # of a run with a number of tokens: lengths of its decayed ends
FIRST_STOP, APART = 24, 4  # the trunk is branched at that share of LATEST, and after so many times more
TOLERANCES = (0.005, 0.01, 0.015)  # of runs without a number of tokens; the first is the product's default
LATEST, FOLLOWED = 1_500_000, 1.6  # tokens until which a stop is waited for; times the stop

# (corpus, tokens, size). tokens None: until it has settled; size None: the plan's own. Every beginning is a mixture.
RUNS: list[tuple[str, str | None, str | None]] = [
    ("manuals_fr", "4M", "1.1M"), ("czech", "1.5M", None), ("swedish", None, "300k"), ("arabic", "1M", None),
    ("rust", "1.5M", None), ("vera", "1M", None), ("boost", "4M", "1.1M"), ("sayings_de", "600k", None),
    ("dutch", None, "200k"), ("perl", "300k", None), ("finnish", "1.5M", None), ("handbook", "2M", None),
    ("vim_help", "3.2M", "1.1M"), ("sayings_ru", "600k", None), ("italian", None, "300k"), ("codes", "1M", None),
    ("latin", "1M", None), ("instructions", "1.2M", None), ("perl", "3.2M", "1.1M"), ("tcl", "500k", None),
    ("russian_faq", None, "100k"), ("german", "1.2M", None), ("devil", "1.5M", None), ("jargon", "500k", None),
    ("sqlite", "3.2M", "1.1M"), ("sayings_it", "800k", None), ("portuguese", None, "200k"), ("japanese", "500k", None),
    ("ruby", "1.2M", None), ("unicode", "800k", None), ("hungarian", "3.2M", "1.1M"), ("lintian", "1M", None),
    ("sayings_br", None, "200k"), ("vim_script", "400k", None), ("french", "1.2M", None), ("python", "1M", None),
    ("cedict", "3.2M", "1.1M"), ("sayings_cs", "500k", None), ("manuals_pl", None, "200k"),
    ("pronounced", "500k", None), ("spanish", "1.5M", None), ("tool_calls", "1.5M", None),
    ("maths", "3.2M", "1.1M"), ("chinese", "600k", None),
    ("sayings_zh", None, "200k"), ("korean", "300k", None), ("handbook_ar", "1.5M", None), ("sqlite", "400k", None),
    ("lisp", "3.2M", "1.1M"), ("sayings_en", "400k", None), ("octave", None, "300k"), ("c_headers", "800k", None),
    ("manuals_ja", "1.2M", None), ("locales", "700k", None), ("manuals_de", "3.2M", "1.1M"), ("apt_ja", None, "200k"),
    ("prolog", None, "150k"), ("manuals_sv", "800k", None), ("c_headers", "3.1M", "1.3M"), ("sayings_eo", None, "100k"),
    ("vim_script", "3.1M", "1.3M"), ("sayings_bg", None, "200k"), ("russian_dev", "900k", None),
    ("sayings_en", "3.1M", "1.3M"), ("lintian", "3.1M", "1.3M"), ("sayings_ru", "3.1M", "1.3M"),
    # half of a text
    ("tcl_half", "500k", "240k"), ("sayings_it_half", "800k", "220k"), ("german_half", "1.2M", "370k"),
    ("rust_half", "1.5M", "880k"), ("jargon_half", "500k", "220k"),
]  # fmt: skip


def record(text: Path, tokens: str | None, size: str | None, seed: int) -> dict[str, object]:
    """One run, as its file holds it."""
    asked = {k: v for k, v in {"size": size, "tokens": tokens, "threads": 1, "seed": seed}.items() if v is not None}
    settings = resolve(TrainingSettings, [("asked", asked)])
    corpus = prepare([str(text)], settings.value.data, Events())
    plan = plan_training(settings.value, settings.origin, corpus, 0.0)
    began = time.process_time()
    sample = HeldOut(
        list(held_out_batches(corpus.selection, plan.loop.sequence_length, EVALUATION_BLOCK, SAMPLE)),
        corpus.tokenizer.byte_length,
    )
    ends = [_probed(plan, corpus, sample)]
    trunk = Trunk(LiveRun.build(plan, corpus), sample, LATEST)
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
        "weight_decay": plan.optimizer.get("weight_decay"),
        "lr": plan.optimizer.get("lr"),
        "loop": {
            k: v for k, v in plan.loop.model_dump().items() if k in ("tokens_per_step", "sequence_length",
            "warmup_steps", "max_steps", "decay_fraction", "longest_decay")
        },
        "ngrams": [[n, round(losses[-1], 5)] for n, losses in counted(corpus).ngrams],
        "packed": round(counted(corpus).packed, 5),
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
        self.rule = Watch(self.trainer, self.held_out, Events()).settled
        self.floor, self.best = self.rule.floor, self.trainer.weights()

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
        longest = loop.longest_decay or most
        branches = {max(1, steps - min(longest, round(steps * loop.decay_fraction))): steps for steps in lengths}
        most = max(branches, default=most)
        while True:
            seen = state.step * per_step
            last = self.history[-1].tokens if self.history else -1
            if last < 0 or seen >= self._next_evaluation(last) or state.step == most:
                e = evaluate(job.model, job.objective, self.held_out, state.step, seen)
                self.history.append(e)
                if e is min(self.history, key=lambda e: e.loss):
                    self.best = self.trainer.weights()
                if not branches and seen <= self.latest and self._stopped(seen):
                    self._branch(state.step + self._settled_decay(seen), "stop")
                    everywhere = len(self.stops) == len(TOLERANCES)  # then there is nothing left to wait for
                    most = max(0 if everywhere else most, round(FOLLOWED * state.step))
            if state.step in branches:
                self._branch(branches[state.step], "end")
            if seen >= at_stops or (state.step == most and not branches):
                self._branch(state.step + self._settled_decay(seen), "stop")
                at_stops *= APART
            if state.step == most:
                return
            self.trainer.take_step(state, min(1.0, (state.step + 1) / (loop.warmup_steps + 1)))
            state.step += 1

    def _settled_decay(self, seen: int) -> int:
        loop = self.job.plan.loop
        steps = max(1, round(decay_tokens(seen) / loop.tokens_per_step))
        return min(steps, loop.longest_decay or steps)

    def _next_evaluation(self, last: int) -> int:
        return next_evaluation(last, self.held_out.num_tokens, self.job.plan.loop.evaluation_cost)

    def _stopped(self, seen: int) -> bool:
        """Whether the product's rule ends the run at the last evaluation, at a tolerance at which it has not before."""
        stopped = False
        for tolerance in (t for t in TOLERANCES if t not in self.stops):
            rule = replace(self.rule, tolerance=tolerance)
            if rule.asks(self.history) and (judgement := rule.judge(self.history)).state != "improving":
                self.stops[tolerance] = {"state": judgement.state, "tokens": seen, "why": judgement.why}
                print(f"    {tolerance:.1%}: {judgement.state} after {seen:,} tokens", flush=True)
                stopped = True
        return stopped

    def _branch(self, until: int, kind: str) -> None:
        """Decay to zero from here to step `until`, as the product does; then restore everything."""
        trainer, state, step, position = self.trainer, self.state, self.state.step, self.state.position
        weights = trainer.weights()
        kept = {k: v.clone() for k, v in trainer.moments().items()}
        candidates = [self.best]
        if self.rule.rise(self.history) is not None:
            trainer.go_back(self.best)
        elif trainer.average:
            candidates.append({k: v.clone() for k, v in trainer.average.items()})
        while state.step < until:
            warm = min(1.0, (state.step + 1) / (self.job.plan.loop.warmup_steps + 1))
            trainer.take_step(state, warm * (until - state.step) / (until - step + 1))
            state.step += 1
        end = _end(self.job, self.sample, state, kind) | {"from": step * self.job.plan.loop.tokens_per_step}
        decayed = end["loss"]
        candidates.append({k: v.clone() for k, v in trainer.average.items()})
        for candidate in filter(None, candidates):
            trainer.take_weights(candidate)
            other = _end(self.job, self.sample, state, kind)
            if float(str(other["own"])) < float(str(end["own"])):
                end |= other
        self.ends.append(end | {"decayed": decayed})
        trainer.load(Checkpoint(step, weights, kept, None, {}))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, tokens, size in RUNS:
        out = asked.out / f"{name}-{size or 'own'}-{tokens or 'settled'}-{asked.seed}.json"
        if out.exists() or (asked.only and name not in asked.only):
            continue
        out.touch()  # another process leaves it out
        row = record(asked.texts / f"{name}.txt", tokens, size, asked.seed)
        out.write_text(json.dumps(row))
        print(f"{time.strftime('%H:%M:%S')} {out.name}: {row['cpu_seconds']} s, {row['stops']}", flush=True)


if __name__ == "__main__":
    main()
