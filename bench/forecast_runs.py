"""Train through the product's own plan, probe and loop, and write one line of JSON a run: what a rule is fitted on.

python bench/forecast_runs.py OUT.jsonl SIZE TOKENS INPUT [INPUT …]     (appends one line)
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from settle.base.event_log import Events, to_record
from settle.base.run import Run
from settle.base.settings import resolve
from settle.data.prepare import prepare
from settle.machine import PeakMemory, resident
from settle.plan.probe import probe, probe_steps
from settle.plan.settings import TrainingSettings
from settle.plan.training_plan import plan_training
from settle.train.live_run import LiveRun


def train(size: str, tokens: str, inputs: list[str], seed: int) -> dict:
    asked = {"size": size, "tokens": tokens, "threads": 1, "seed": seed}
    settings = resolve(TrainingSettings, [("asked", asked)])
    corpus = prepare(inputs, settings.value.data, Events())
    plan = plan_training(settings.value, settings.origin, corpus, 0.0)
    base = resident()
    steps = probe_steps(plan.loop.max_steps) or 40
    probed = probe(plan, corpus, steps)
    longer = probe(plan, corpus, 3 * steps)
    plan = dataclasses.replace(plan, loop=plan.loop.model_copy(update={"until_settled": False}))
    began = time.monotonic()
    peak = PeakMemory().start()
    job = LiveRun.build(plan, corpus)
    heard: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        run.checkpoints.mkdir()
        outcome = job.loop(run, Events(listeners=[lambda e: heard.append(to_record(e))]), lambda: False).train()
    memory = peak.read()
    final = job.judge(outcome.best, outcome.state)
    return {
        "inputs": inputs,
        "size": size,
        "tokens": tokens,
        "seed": seed,
        "parameters": job.architecture.num_parameters,
        "architecture": plan.architecture,
        "loop": plan.loop.model_dump(),
        "dtype": plan.dtype,
        "unique": corpus.train.num_tokens,
        "held_out": corpus.held_out.num_tokens,
        "bytes": corpus.train.num_bytes,
        "held_out_tokens": plan.held_out_tokens,
        "resident": base,
        "probe": dataclasses.asdict(probed),
        "longer": dataclasses.asdict(longer),
        "memory": memory,
        "loop_seconds": outcome.state.seconds,
        "seconds": time.monotonic() - began,
        "evaluations": [(e.step, e.tokens, e.loss, e.stderr) for e in outcome.state.history],
        "step_seconds": [plan.loop.tokens_per_step / e["tokens_per_second"] for e in heard if e["kind"] == "step"],
        "best_step": outcome.state.best_step,
        "final": final,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("size")
    parser.add_argument("tokens")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    row = train(arguments.size, arguments.tokens, arguments.inputs, arguments.seed)
    with arguments.out.open("a") as f:
        f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
