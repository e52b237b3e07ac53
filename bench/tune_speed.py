"""LoRA tuning: tokens a second, loss and memory of `settle tune` and of a peer, in turns, on the same rows.

    python bench/docstrings.py rows.jsonl
    python bench/tune_models.py shape qwen2-0.5b smollm2.gguf qwen2-0.5b
    python bench/tune_speed.py qwen2-0.5b rows.jsonl --peer trl=VENV [--peer unsloth=VENV] [--peer mlx=VENV] [--steps 8]

VENV is an environment with the peer installed. Every side loads the same Hugging Face folder, and then the sides make
one optimizer step each in turn, on the same rows, while the others are stopped: a busy machine hits all alike. The
order within a round alternates. Ratios are those of a round (the peer's seconds over ours, same rows); the first
--skip rounds are warm-up and counted nowhere. Tokens are those of the rows, padding not counted. All sides use LoRA of
rank 16 on every linear layer but the head, AdamW without decay, the rate constant after the same few steps of warm-up,
batches of 8 rows.

A peer's settings are its best measured ones below; `--settings trl='{"padding_free": false}'` overrides single ones
(names in capitals are environment variables), `--preset default` takes its own defaults instead. --dtype holds all
sides to one type of weights and products; without it settle takes what its probe finds fastest.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TUNERS = Path(__file__).parent / "tuners"
RUNNERS = {"settle": "run_settle.py", "trl": "run_trl.py", "unsloth": "run_trl.py", "mlx": "run_mlx.py"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"settle": {}, "trl": {}, "unsloth": {"unsloth": {}}, "mlx": {}},
    "best": {
        "settle": {},
        "trl": {"dtype": "bfloat16", "activation_checkpointing": False, "padding_free": True, "max_length": None},
        "unsloth": {"unsloth": {}, "gradient_checkpointing": False, "UNSLOTH_CPU_COMPILE": 1},
        # its wheel brings the reference BLAS, on one thread; where the system has OpenBLAS, that is taken instead
        "mlx": {"dtype": "bfloat16", "LD_PRELOAD": "libopenblas.so.0"},
    },
}
WARMUP = 3  # steps; ours where it runs
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class Side:
    """One runner as a child process, stopped whenever it is not its turn."""

    def __init__(self, name: str, python: Path, arguments: list[str], settings: dict[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        work.mkdir()
        self.log = work / "log.txt"
        # a peer runs without what importing settle may have set here: it would change how its threads wait
        ours = () if name == "settle" else ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "PYTHONPATH")
        env = {k: v for k, v in os.environ.items() if k not in ours} | QUIET
        env |= {k: str(settings[k]) for k in settings if k.isupper()}
        settings = {k: v for k, v in settings.items() if not k.isupper()}
        command = [str(python), str(TUNERS / RUNNERS[name]), *arguments]
        self.process = subprocess.Popen(
            [*command, "--work", str(work), "--settings", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("wb"),
            env=env,
            text=True,
            start_new_session=True,
        )

    def read(self, kind: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        if not told:
            raise SystemExit(f"{self.name} ended, code {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        event: dict[str, Any] = json.loads(told)
        assert event["kind"] == kind, (self.name, event)
        return event

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go(self) -> None:
        assert self.process.stdin is not None
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(
    name: str, python: Path, asked: argparse.Namespace, rows: Path, folder: Path, warmup: int
) -> tuple[Side, dict[str, Any]]:
    """Return a side that has loaded everything and waits, and what it reported."""
    same = {"dtype": asked.dtype} if asked.dtype else {}
    threads = {"OMP_NUM_THREADS": asked.threads, "OPENBLAS_NUM_THREADS": asked.threads}
    settings = threads | PRESETS[asked.preset][name] | same | asked.settings.get(name, {})
    arguments = [str(asked.model), str(rows), "--steps", str(asked.steps), "--threads", str(asked.threads)]
    arguments += ["--warmup", str(warmup)]
    side = Side(name, python, arguments, settings, folder / name)
    told = side.read("ready")
    side.stop()
    return side, told | {"settings": settings}


def race(sides: list[Side], rounds: int) -> list[dict[str, dict[str, Any]]]:
    """Each side's step in every round, in an order that alternates; all sides must have the same tokens."""
    made = []
    for number in range(rounds):
        steps = {}
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.go()
            steps[side.name] = side.read("step")
            if number + 1 < rounds:
                side.stop()
            else:
                steps[side.name] |= {"memory": side.read("done")}
        counts = {(s["tokens"], s["supervised"]) for s in steps.values()}
        if len(counts) != 1:
            raise SystemExit(f"round {number + 1} is not equal work: {steps}")
        made.append(steps)
        print(json.dumps({k: {x: s[x] for x in ("seconds", "loss", "tokens")} for k, s in steps.items()}))
    return made


def compare(made: list[dict[str, dict[str, Any]]], names: list[str], skip: int) -> dict[str, Any]:
    """Tokens a second of each side, ratios to the first one by round, loss curves, peak memory."""
    counted, last = made[skip:], made[-1]
    seconds = {name: [r[name]["seconds"] for r in counted] for name in names}
    tokens = sum(r[names[0]]["tokens"] for r in counted)
    result: dict[str, Any] = {"rounds": len(counted), "tokens": tokens}
    for name in names:
        memory = last[name]["memory"]
        result[name] = {
            "tokens_per_second": tokens / sum(seconds[name]),
            "loss": [r[name]["loss"] for r in made],
            "peak_memory": max(memory["peak_loading"], memory["peak_steps"]),
            "peak_memory_steps": memory["peak_steps"],
        }
    for name in names[1:]:
        ratios = [theirs / ours for ours, theirs in zip(seconds[names[0]], seconds[name], strict=True)]
        gaps = [r[names[0]]["loss"] - r[name]["loss"] for r in made]
        result[name] |= {
            "ratios": ratios,
            "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
            "loss_gap": {"mean": statistics.fmean(gaps), "largest": max(map(abs, gaps))},
            "memory_of_ours": result[names[0]]["peak_memory"] / max(1, result[name]["peak_memory"]),
        }
    return result


def in_order(rows: Path, order: list[int] | None, out: Path) -> Path:
    """Write the rows as a file in the order that settle draws them."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines if order is None else [lines[i] for i in order]), encoding="utf-8")
    return out


def pair(given: str) -> tuple[str, str]:
    name, _, value = given.partition("=")
    if name not in RUNNERS or not value:
        raise argparse.ArgumentTypeError(f"{given}: expected NAME=…, NAME one of {', '.join(RUNNERS)}")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--peer", type=pair, action="append", required=True, help="NAME=VENV")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--skip", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all sides")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="best")
    parser.add_argument("--settings", type=pair, action="append", default=[], help="NAME=JSON")
    parser.add_argument("--without-settle", action="store_true", help="only the peers, the first one as the measure")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # or its sides would outlive it, stopped
    asked.settings = {name: json.loads(value) for name, value in asked.settings}
    asked.model, asked.rows = asked.model.resolve(), asked.rows.resolve()
    sides: list[Side] = []
    with tempfile.TemporaryDirectory() as made_folder:
        folder, order, warmup, told = Path(made_folder), None, WARMUP, {}
        try:
            if not asked.without_settle:
                side, told["settle"] = start("settle", Path(sys.executable), asked, asked.rows, folder, WARMUP)
                sides.append(side)
                order, warmup = told["settle"].pop("order"), told["settle"]["warmup"]
            rows = in_order(asked.rows, order, folder / "rows.jsonl")
            for name, venv in asked.peer:
                side, told[name] = start(name, Path(venv, "bin", "python"), asked, rows, folder, warmup)
                sides.append(side)
            made = race(sides, asked.steps)
        finally:
            for side in sides:
                side.end()
    result = {"model": asked.model.name, "sides": told, **compare(made, [s.name for s in sides], asked.skip)}
    print(json.dumps(result))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
