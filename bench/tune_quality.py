"""Is a tuned model as good as TRL's? The same rows, tokens, trials and seeds, judged on rows that chose nothing.

    python bench/tune_quality.py MODEL TRAIN.jsonl HELD_OUT.jsonl --trl VENV [--rates 1e-4 3e-4 1e-3] [--seeds 3]

MODEL: a folder in Hugging Face's layout. Rows: as `settle tune` reads them. settle splits TRAIN into training and
selection rows, and both sides train on the first in the same dtype. Each side tries every rate once and keeps the one
of the lowest loss on the selection rows; settle stops by its verdict (or after --steps), and TRL's SFTTrainer with
PEFT's LoRA (every linear, rank 16, warm-up and linear decay, batches of 8) sees as many tokens. Within a trial both
keep the checkpoint of the lowest loss on the selection rows. Then each side is trained anew with every further seed at
its rate. What is told is the loss per answer token on HELD_OUT, by seed, and the mean difference over rows with its
interval, each row's loss the mean over seeds. Without --trl only settle is trained. --template none: prompt and
completion as they are, for a base that does not chat.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from settle.base.event_log import Events, to_record
from settle.base.settings import resolve
from settle.base.statistics import paired_test
from settle.commands.make.tune import Tune
from settle.data.batches import held_out_rows
from settle.data.rows.prepare import RowCorpus, prepare_rows
from settle.data.settings import RowSettings
from settle.data.store import RowStore
from settle.model.load_adapter import attach, open_adapter
from settle.model.pretrained import Pretrained
from settle.train.objectives.next_token import NextToken

TRAINER = Path(__file__).parent / "tuners" / "train_trl.py"
METHOD = {"r": 16, "lora_alpha": 32, "targets": "all-linear", "warmup": 0.04, "lr_scheduler_type": "linear"}
EVALUATIONS = 25  # of a trial of TRL's, from which its checkpoint is chosen
Trial = tuple[float, int]  # rate and seed


@dataclass(frozen=True)
class Work:
    """Where everything is. corpus: the rows, whose held-out side is the judgement's."""

    model: Path
    rows: Path
    held_out: Path
    folder: Path
    corpus: RowCorpus
    asked: argparse.Namespace


@dataclass(frozen=True)
class Tuned:
    """An adapter, and the epochs that it saw."""

    adapter: Path
    epochs: float


def by_settle(work: Work, trial: Trial) -> Tuned:
    """`settle tune` to its verdict."""
    (rate, seed), asked = trial, work.asked
    name = f"quality-{asked.rates.index(rate)}-{seed}"
    given = {"model": str(work.model), "inputs": [str(work.rows)], "name": name, "compare": False, "seed": seed}
    given |= {"steps": asked.steps, "dtype": asked.dtype, "threads": asked.threads, "rows": row_settings(asked)}
    heard: dict[str, Any] = {}
    settings = resolve(Tune, [("asked", given | {"optimizer": {"name": "adamw", "lr": rate}})]).value
    settings.run(Events(listeners=[lambda e: heard.update({e.kind: to_record(e)})]))
    result = heard["result"]["result"]
    return Tuned(Path(result["files"]["adapter"]), result["actual"]["tokens"] / work.corpus.train.num_inputs)


def row_settings(asked: argparse.Namespace) -> dict[str, object]:
    """Of RowSettings: half of `held_out` selects the weights where the judgement has a file of its own."""
    return {"held_out_from": str(asked.held_out), "template": asked.template, "held_out": 2 * asked.selection}


def by_trl(work: Work, trials: list[Trial], epochs: float) -> list[Tuned]:
    """TRL, on the rows that settle trains on, one process for all trials."""
    names = [f"trl-{rate}-{seed}" for rate, seed in trials]
    settings = [
        METHOD | {"name": name, "learning_rate": rate, "seed": seed, "epochs": epochs}
        for name, (rate, seed) in zip(names, trials, strict=True)
    ]
    asked = {"model": str(work.model), "folder": str(work.folder), "evaluations": EVALUATIONS, "trials": settings}
    asked |= {side: str(written(work, side)) for side in ("train", "selection")}
    asked |= {"dtype": work.asked.dtype, "threads": work.asked.threads}
    ours = ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    command = [work.asked.trl / "bin" / "python", TRAINER, json.dumps(asked)]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    facts = [json.loads((work.folder / name / "facts.json").read_text()) for name in names]
    print(json.dumps({"TRL": facts}), flush=True)
    return [Tuned(work.folder / n / "adapter", f["epochs"]) for n, f in zip(names, facts, strict=True)]


def written(work: Work, side: str) -> Path:
    """Write a side of the corpus as JSON lines of prompt and completion: turns, or plain text without a template."""
    path = work.folder / f"{side}.jsonl"
    if not path.exists():
        rows = ((example.messages[:-1], example.messages[-1:]) for example in work.corpus.examples(side))
        if work.corpus.template is None:
            rows = ((prompt[0]["content"], completion[0]["content"]) for prompt, completion in rows)
        lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row_losses(work: Work, store: RowStore, adapter: Path | None) -> np.ndarray:
    """Nats per answer token of each row, in fp32, in the store's order of families."""
    base = Pretrained.open(work.model)
    live = base.load(dtype=torch.float32)
    if adapter is not None:
        attach(live, open_adapter(adapter))
    objective = NextToken()
    live.eval()
    with torch.no_grad():
        found = [objective.batch_loss(live, batch) for batch in held_out_rows(store, 1)]  # a row a batch
    return np.array([float(total) / count for total, count in found])


def tried(work: Work, name: str, train: Callable[[list[Trial]], list[Tuned]]) -> np.ndarray:
    """Losses on the held-out rows (seeds, R), at the rate that the selection rows choose."""
    rates, seeds = work.asked.rates, work.asked.seeds
    trials = dict(zip(rates, train([(rate, 0) for rate in rates]), strict=True))
    selection = {rate: float(row_losses(work, work.corpus.selection, t.adapter).mean()) for rate, t in trials.items()}
    rate = min(selection, key=selection.__getitem__)
    chosen = [trials[rate], *train([(rate, seed) for seed in range(1, seeds)])]
    losses = np.stack([row_losses(work, work.corpus.held_out, one.adapter) for one in chosen])
    by_seed = losses.mean(1)
    facts = {"selection": selection, "rate": rate, "epochs": [one.epochs for one in chosen]}
    told = {"side": name, **facts, "loss": by_seed.tolist(), "mean": by_seed.mean(), "std": by_seed.std(ddof=1)}
    print(json.dumps(told), flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--trl", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--selection", type=float, default=0.2, help="share of TRAIN that chooses, at most 0.25")
    parser.add_argument("--steps", type=int, help="of settle, where it shall not stop by its verdict")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of both sides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--template", choices=("none",), help="prompt and completion as they are")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = str(Path(folder, "home"))
        base = Pretrained.open(asked.model)
        rows = resolve(RowSettings, [("asked", row_settings(asked))]).value
        longest = {"max_tokens": base.part.max_position_embeddings}  # type: ignore[attr-defined]
        corpus = prepare_rows([str(asked.train)], base.tokenizer, rows.model_copy(update=longest), Events())
        work = Work(asked.model, asked.train, asked.held_out, Path(folder), corpus, asked)
        print(json.dumps({"side": "base", "loss": float(row_losses(work, corpus.held_out, None).mean())}), flush=True)
        sides = {"train": corpus.train, "selection": corpus.selection, "held out": corpus.held_out}
        print(json.dumps({name: store.num_rows for name, store in sides.items()}), flush=True)
        epochs: list[float] = []

        def ours(trials: list[Trial]) -> list[Tuned]:
            made = [by_settle(work, trial) for trial in trials]
            epochs.extend(one.epochs for one in made)
            return made

        settle = tried(work, "settle", ours)
        if asked.trl is None:
            return
        usual = float(np.mean(epochs))
        peer = tried(work, "TRL", lambda trials: by_trl(work, trials, usual))
        families = np.sort(corpus.held_out.families[:: corpus.held_out.segments_per_row]).tolist()
        test = paired_test((-peer.mean(0)).tolist(), (-settle.mean(0)).tolist(), families)
        print(json.dumps({"settle against TRL, minus loss": test.to_json()}), flush=True)


if __name__ == "__main__":
    main()
