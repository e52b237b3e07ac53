"""The most memory that a tuning run takes, against its own forecast and a limit: QLoRA on a 3B shape by default.

    python bench/tune_models.py shape llama-3.2-3b smollm2.gguf llama-3b
    python bench/tune_memory.py llama-3b [--tokens 1024] [--steps 4] [--quantize nf4|as-is|none] [--limit-gib 6]
        [--keep]

One row is a step, and is about --tokens long: Python's standard library, the last tenth of it to be written by the
model. The whole process counts, as the system does: from its first import to its last step, pages of mapped files
included. Layers are computed again in the backward pass, as settle plans by itself where memory is short; --keep
leaves that to the plan for this machine. The run is the command as a person gives it, stopped after its steps by
--steps; handing over is not in it.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def write_rows(model: Path, tokens: int, count: int, out: Path) -> None:
    """`count` rows of about `tokens` tokens each, different ones."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    ids: list[int] = []
    for path in files:
        ids += tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
        if len(ids) > tokens * count:
            break
    kept, asked = tokens - 24, tokens * 9 // 10  # a template takes some tokens
    with out.open("w", encoding="utf-8") as lines:
        for first in range(0, tokens * count, tokens):
            question = tokenizer.decode(ids[first : first + asked])
            answer = tokenizer.decode(ids[first + asked : first + kept])
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": turns}) + "\n")


def high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmHWM:")), 0)


def watch(command: list[str], home: Path, steps: int) -> dict[str, Any]:
    """Watch the run up to its last step: peak memory, its forecast, tokens a second."""
    process = subprocess.Popen(command, env={**os.environ, "SETTLE_HOME": str(home)}, stdout=subprocess.DEVNULL)
    made: list[dict[str, Any]] = []
    peak = 0
    while len(made) < steps and process.poll() is None:
        time.sleep(0.2)
        peak = max(peak, high_water(process.pid))
        for events in (home / "runs").glob("*/events.jsonl"):
            told = [json.loads(line) for line in events.read_text().splitlines() if line.endswith("}")]
            made = [event for event in told if event["kind"] == "step"]
    if len(made) < steps:
        raise SystemExit(f"settle tune ended, code {process.returncode}, after {len(made)} steps")
    forecast = json.loads(next((home / "runs").glob("*/forecast.json")).read_text())
    process.kill()
    process.wait()
    speeds = sorted(event["tokens_per_second"] for event in made)
    return {"peak": peak, "forecast": forecast["peak_memory"], "tokens_per_second": speeds[len(speeds) // 2]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quantize", choices=["nf4", "as-is", "none"], default="nf4")
    parser.add_argument("--limit-gib", type=float, default=6.0)
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        write_rows(asked.model, asked.tokens, 24, rows)
        command = [sys.executable, "-m", "settle", "tune", str(asked.model), str(rows), "--json", "--batch-rows", "1"]
        command += ["--steps", str(asked.steps), "--name", "memory"]
        command += [] if asked.keep else ["--recompute"]
        command += [] if asked.quantize == "none" else ["--quantize", asked.quantize]
        result = watch(command, Path(folder, "home"), asked.steps)
    result["fits"] = result["peak"] <= asked.limit_gib * 2**30
    print(json.dumps({"model": asked.model.name, "tokens": asked.tokens, "quantize": asked.quantize, **result}))


if __name__ == "__main__":
    main()
