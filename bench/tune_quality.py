"""Is a tuned model as good as TRL's, and done sooner? The same rows, the same tokens, the same held-out rows.

    python bench/tune_quality.py MODEL TRAIN.jsonl HELD_OUT.jsonl --trl VENV [--epochs 3]

MODEL: a folder in Hugging Face's layout. Rows: {"question", "answer"}. `settle tune` runs until it has settled, with
nothing chosen by hand. Then TRL's SFTTrainer with PEFT's LoRA, all at their defaults but for the batch of 8 rows, sees
as many tokens; then `--epochs` epochs, which is its default; and a third time as many tokens with settle's method
(every linear, rank 16, rate 3e-4 with warm-up and linear decay). Every adapter is judged by the same code: the mean
loss per answer token over all held-out rows.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from settle.base.event_log import Events, to_record
from settle.base.settings import resolve
from settle.commands.make.tune import Tune
from settle.data.rows.batches import held_out_rows
from settle.data.rows.prepare import RowCorpus, prepare_rows
from settle.data.settings import RowSettings
from settle.model.load_adapter import attach, open_adapter
from settle.model.pretrained import Pretrained
from settle.train.evaluation import HeldOut, evaluate
from settle.train.objectives.next_token import NextToken

TRAINER = Path(__file__).parent / "tuners" / "train_trl.py"
OURS = {"r": 16, "lora_alpha": 32, "targets": "all-linear", "learning_rate": 3e-4, "warmup_ratio": 0.04}


def tuned(model: Path, rows: Path, held_out: Path) -> tuple[dict[str, Any], Path]:
    """`settle tune` to its verdict: result and adapter."""
    given = {"model": str(model), "inputs": [str(rows)], "name": "quality", "compare": False}
    layers = [("asked", given | {"rows": {"held_out_from": str(held_out)}})]
    heard: dict[str, Any] = {}
    resolve(Tune, layers).value.run(Events(listeners=[lambda e: heard.update({e.kind: to_record(e)})]))
    result = heard["result"]["result"]
    return result, Path(result["files"]["adapter"])


def by_trl(venv: Path, model: Path, rows: Path, work: Path, settings: dict[str, Any]) -> Path:
    """TRL's adapter."""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "PYTHONPATH")
    }
    command = [venv / "bin" / "python", TRAINER, model, rows, work, json.dumps(settings)]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return work / "adapter"


def judged(model: Path, corpus: RowCorpus, adapter: Path | None) -> dict[str, float]:
    """Held-out loss in nats per answer token, in fp32."""
    base = Pretrained.open(model)
    live = base.load(dtype=torch.float32)
    if adapter is not None:
        attach(live, open_adapter(adapter))
    held_out = HeldOut(list(held_out_rows(corpus.held_out, 2048)), base.tokenizer.byte_length)
    evaluation = evaluate(live, NextToken(), held_out, 0, 0)
    return {"loss": evaluation.loss, "stderr": evaluation.stderr}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--trl", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=3.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = str(Path(folder, "home"))
        result, adapter = tuned(asked.model, asked.train, asked.held_out)
        base = Pretrained.open(asked.model)
        rows = resolve(RowSettings, [("asked", {"held_out_from": str(asked.held_out)})]).value
        longest = {"max_tokens": base.part.max_position_embeddings}  # type: ignore[attr-defined]
        corpus = prepare_rows([str(asked.train)], base.tokenizer, rows.model_copy(update=longest), Events())
        epochs = result["actual"]["tokens"] / corpus.train.num_inputs
        told = {key: result[key] for key in ("verdict", "why")} | {"epochs": epochs, "actual": result["actual"]}
        print(json.dumps({"side": "base", **judged(asked.model, corpus, None)}), flush=True)
        print(json.dumps({"side": "settle", **told, **judged(asked.model, corpus, adapter)}), flush=True)
        for side, settings in (
            ("TRL, its defaults, as many tokens", {"epochs": epochs}),
            (f"TRL, its defaults, {asked.epochs:g} epochs", {"epochs": asked.epochs}),
            ("TRL, settle's method, as many tokens", {"epochs": epochs, **OURS}),
        ):
            made = by_trl(asked.trl, asked.model, asked.train, Path(folder, side.replace(" ", "-")), settings)
            facts = json.loads((made.parent / "facts.json").read_text())
            print(json.dumps({"side": side, **facts, **judged(asked.model, corpus, made)}), flush=True)


if __name__ == "__main__":
    main()
