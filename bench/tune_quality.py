"""Is a tuned model as good as TRL's? The same rows, tokens, trials and seeds, judged on rows that chose nothing.

    python bench/tune_quality.py MODEL TRAIN.jsonl HELD_OUT.jsonl --trl VENV [--rates 1e-4 3e-4 1e-3] [--seeds 3]

MODEL: a folder in Hugging Face's layout. Rows: as `settle tune` reads them. settle splits TRAIN into training and
selection rows, and both sides train on the first. Each side tries every rate once and keeps the one of the lowest loss
on the selection rows; settle stops by its verdict, and TRL's SFTTrainer with PEFT's LoRA (every linear, rank 16,
warm-up and linear decay, batches of 8) sees as many tokens. Then each side is trained anew with every further seed at
its rate. What is told is the loss per answer token on HELD_OUT, by seed, and the mean difference over rows with its
interval, each row's loss the mean over seeds. Without --trl only settle is trained.
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
from settle.data.rows.batches import held_out_rows
from settle.data.rows.prepare import RowCorpus, prepare_rows
from settle.data.rows.store import RowStore
from settle.data.settings import RowSettings
from settle.model.load_adapter import attach, open_adapter
from settle.model.pretrained import Pretrained
from settle.train.objectives.next_token import NextToken

TRAINER = Path(__file__).parent / "tuners" / "train_trl.py"
METHOD = {"r": 16, "lora_alpha": 32, "targets": "all-linear", "warmup_ratio": 0.04, "lr_scheduler_type": "linear"}


@dataclass(frozen=True)
class Work:
    """Where everything is. corpus: the rows, whose held-out side is the judgement's."""

    model: Path
    rows: Path
    held_out: Path
    folder: Path
    corpus: RowCorpus
    trl: Path | None


@dataclass(frozen=True)
class Tuned:
    """An adapter, and the epochs that it saw."""

    adapter: Path
    epochs: float


def by_settle(work: Work, rate: float, seed: int) -> Tuned:
    """`settle tune` to its verdict."""
    rows = {"held_out_from": str(work.held_out)}
    given = {"model": str(work.model), "inputs": [str(work.rows)], "name": "quality", "compare": False, "seed": seed}
    heard: dict[str, Any] = {}
    asked = resolve(Tune, [("asked", given | {"rows": rows, "optimizer": {"name": "adamw", "lr": rate}})]).value
    asked.run(Events(listeners=[lambda e: heard.update({e.kind: to_record(e)})]))
    result = heard["result"]["result"]
    return Tuned(Path(result["files"]["adapter"]), result["actual"]["tokens"] / work.corpus.train.num_inputs)


def by_trl(work: Work, rate: float, seed: int, epochs: float) -> Tuned:
    """TRL, on the rows that settle trains on."""
    folder = work.folder / f"trl-{rate}-{seed}"
    settings = METHOD | {"learning_rate": rate, "seed": seed, "epochs": epochs}
    ours = ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    assert work.trl is not None
    command = [work.trl / "bin" / "python", TRAINER, work.model, trained_rows(work), folder, json.dumps(settings)]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return Tuned(folder / "adapter", epochs)


def trained_rows(work: Work) -> Path:
    """The training side as JSON lines of messages."""
    path = work.folder / "train.jsonl"
    if not path.exists():
        lines = (json.dumps({"messages": example.messages}) for example in work.corpus.examples("train"))
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


def tried(work: Work, name: str, train: Callable[[float, int], Tuned], rates: list[float], seeds: int) -> np.ndarray:
    """Losses on the held-out rows (seeds, R), at the rate that the selection rows choose."""
    trials = {rate: train(rate, 0) for rate in rates}
    selection = {rate: float(row_losses(work, work.corpus.selection, t.adapter).mean()) for rate, t in trials.items()}
    rate = min(selection, key=selection.__getitem__)
    chosen = [trials[rate], *(train(rate, seed) for seed in range(1, seeds))]
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
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = str(Path(folder, "home"))
        base = Pretrained.open(asked.model)
        rows = resolve(RowSettings, [("asked", {"held_out_from": str(asked.held_out)})]).value
        longest = {"max_tokens": base.part.max_position_embeddings}  # type: ignore[attr-defined]
        corpus = prepare_rows([str(asked.train)], base.tokenizer, rows.model_copy(update=longest), Events())
        work = Work(asked.model, asked.train, asked.held_out, Path(folder), corpus, asked.trl)
        print(json.dumps({"side": "base", "loss": float(row_losses(work, corpus.held_out, None).mean())}), flush=True)
        epochs: dict[tuple[float, int], float] = {}

        def ours(rate: float, seed: int) -> Tuned:
            made = by_settle(work, rate, seed)
            epochs[rate, seed] = made.epochs
            return made

        settle = tried(work, "settle", ours, asked.rates, asked.seeds)
        if asked.trl is None:
            return
        usual = float(np.mean(list(epochs.values())))
        peer = tried(work, "TRL", lambda rate, seed: by_trl(work, rate, seed, usual), asked.rates, asked.seeds)
        families = np.sort(corpus.held_out.families[:: corpus.held_out.segments_per_row]).tolist()
        test = paired_test((-peer.mean(0)).tolist(), (-settle.mean(0)).tolist(), families)
        print(json.dumps({"settle against TRL, minus loss": test.to_json()}), flush=True)


if __name__ == "__main__":
    main()
