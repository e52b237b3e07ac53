"""Record real tuning runs, as bench/record.py records those from nothing: a trunk, its stops, and decays from it.

    python bench/record_tuning.py BASE TEXTS OUT --data DIR [--only NAME …] [--rows FOLDER]
    python bench/record_tuning.py --judge OUT

BASE: a small pretrained model (GGUF), here of 0.3 M parameters: `settle train FOLDER --size 300k --tokens 500k` on
handbook, sayings_en and german of bench/corpora.py. TEXTS: the folder that bench/corpora.py made. DIR: of rows, as
there. Writes one JSON file a run under OUT; a run whose file exists is left out. One thread.

Rows are of eight kinds: chats, completions, plain text; what each run is: `RUNS`. The plan is the product's own,
without a budget and at its default tolerance; the trunk is watched for `EPOCHS` passes, at most `LATEST` tokens.

--judge: the product's forecast of the loss, from the probe that it makes before a run, against what came after a decay
from every stop and from the end of the trunk; and the tokens that it expects.
"""

import argparse
import ast
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from record import SAMPLE, Trunk

from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.base.statistics import Interval
from settle.data.rows.prepare import prepare_rows
from settle.library.pretrained import open_pretrained
from settle.model.pretrained import Pretrained
from settle.plan.forecast import SETTLES_AFTER, TUNING_STOP_SPREAD, settling, tuning_loss
from settle.plan.probe import measure
from settle.plan.settings import TuningSettings
from settle.plan.tuning_plan import plan_tuning
from settle.train.evaluation import HeldOut
from settle.train.live_run import LiveRun, blocks
from settle.train.settled import DECAY_FRACTION

EPOCHS, LATEST = 5, 120_000
LONGEST = 1200  # characters of a row
Rows = list[dict[str, object]]


def maths(texts: Path, data: Path) -> Rows:
    rows = [json.loads(line) for line in (data / "gsm8k_train.jsonl").read_text().splitlines()]
    return [{"prompt": r["question"], "completion": r["answer"]} for r in rows]


def instructions(texts: Path, data: Path) -> Rows:
    return list(json.loads((data / "alpaca_en_demo.json").read_text()))


def tool_calls(texts: Path, data: Path) -> Rows:
    rows = json.loads((data / "glaive_toolcall_en_demo.json").read_text())
    return [{"text": json.dumps(r, ensure_ascii=False)[:1000]} for r in rows]


def sayings(name: str) -> Callable[[Path, Path], Rows]:
    """Plain text, a saying a row."""

    def read(texts: Path, data: Path) -> Rows:
        pieces = re.split(r"\n%\n", (texts / f"{name}.txt").read_text())
        return [{"text": piece.strip()} for piece in pieces if len(piece) > 40]

    return read


def cedict(texts: Path, data: Path) -> Rows:
    """Chinese to English, where a line says what the word means."""
    text = (texts / "cedict.txt").read_text()
    return [{"prompt": w, "completion": m} for w, m in re.findall(r"^(\S+)\n\[[^\n]*\]\n([^\n]+)$", text, re.M)]


def hungarian(texts: Path, data: Path) -> Rows:
    text = (texts / "hungarian.txt").read_text()
    pairs = re.findall(r"^(\S[^\n]*/)\n((?:[^\n/]+\n)+)", text, re.M)
    return [{"prompt": word, "completion": meaning.strip()} for word, meaning in pairs]


def docstrings(texts: Path, data: Path) -> Rows:
    """Functions of Python's library: the docstring, then the code."""
    rows: Rows = []
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
                code = ast.get_source_segment(source, node) or ""
                rows.append({"prompt": doc.splitlines()[0], "completion": code})
    return rows


# name: (rows, how many, settings)
RUNS: dict[str, tuple[Callable[[Path, Path], Rows], int, dict[str, object]]] = {
    "maths": (maths, 150, {}),
    "sayings_it": (sayings("sayings_it"), 400, {}),
    "hungarian": (hungarian, 600, {}),
    "instructions": (instructions, 150, {"adapter": "full"}),
    "docstrings": (docstrings, 120, {}),
    "cedict": (cedict, 600, {"adapter": "full"}),
    "tool_calls": (tool_calls, 100, {}),
    "sayings_de": (sayings("sayings_de"), 400, {"adapter": "full"}),
}


def record(base: Pretrained, lines: str, asked: dict[str, object]) -> dict[str, object]:
    """One run, as its file holds it."""
    settings = resolve(TuningSettings, [("asked", {"threads": 1, "seed": 1, **asked})])
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text(lines)
        corpus = prepare_rows([str(path)], base.tokenizer, settings.value.rows, Events())
        plan = plan_tuning(settings.value, settings.origin, corpus, base)
        job = LiveRun.build(plan, corpus, base)
        probe = measure(job)
        sample = HeldOut(blocks(plan, corpus.selection, SAMPLE), job.tokenizer.byte_length)
        trunk = Trunk(job, sample, min(LATEST, EPOCHS * corpus.train.num_inputs))
        trunk.follow()
    return {
        "seed": 1,
        "kind": "tune",
        "adapter": plan.tuning.adapter_name if plan.tuning else None,
        "rows": corpus.train.num_rows,
        "unique": corpus.train.num_inputs,
        "parameters": base.part.num_parameters,
        "held_out_tokens": plan.held_out_tokens,
        "sample_tokens": sample.num_tokens,
        "dtype": plan.dtype,
        "loop": {"tokens_per_step": plan.loop.tokens_per_step, "warmup_steps": plan.loop.warmup_steps},
        "probe": {k: v for k, v in asdict(probe).items() if k in ("steps", "before", "after", "stderr")},
        "latest": trunk.latest,
        "expected": list(settling(plan, SETTLES_AFTER * corpus.train.num_inputs, TUNING_STOP_SPREAD).ends),
        **trunk.to_json(),
        "cpu_seconds": round(time.process_time() - began),
    }


def judge(folder: Path) -> None:
    """Forecasts of the loss beside decayed losses, for runs whose probe was recorded."""
    print("| run | k tokens | before any | forecast | actual | error |\n|---|--:|--:|--:|--:|--:|")
    pairs = []
    for path in sorted(folder.glob("tune-*.json")):
        row = json.loads(path.read_text())
        if "probe" not in row:
            continue
        probed = SimpleNamespace(**row["probe"])
        plan = SimpleNamespace(loop=SimpleNamespace(tokens_per_step=row["loop"]["tokens_per_step"]))
        stops = {stop["tokens"] for stop in row["stops"].values()}
        for end in (e for e in row["ends"] if e["from"] in stops or e is row["ends"][-1]):
            said = tuning_loss(plan, probed, Interval(*[float(end["tokens"])] * 3))  # type: ignore[arg-type]
            pairs.append((abs(end["own"] / said.value - 1), said.contains(end["own"])))
            span = f"{said.value:.3f} ({said.low:.3f} to {said.high:.3f})"
            came = f"{end['own']:.3f} | {end['own'] / said.value - 1:+.1%}"
            print(f"| {path.stem} | {end['tokens'] / 1e3:.0f} | {probed.before:.3f} | {span} | {came} |")
        stop = row["stops"].get("0.005")
        value, low, high = (t / 1e3 for t in row["expected"])
        came = f"{stop['tokens'] * (1 + DECAY_FRACTION) / 1e3:.0f}" if stop else f"> {row['latest'] / 1e3:.0f}"
        print(f"| {path.stem}, k tokens until settled | | | {value:.0f} ({low:.0f} to {high:.0f}) | {came} | |")
    errors, inside = zip(*pairs, strict=True)
    print(f"\nmedian {statistics.median(errors):.1%}, {sum(inside)} of {len(inside)} inside the 80 % interval")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "texts", "out"):
        parser.add_argument(name, type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--rows", type=Path, help="write the rows of every run there, and record nothing")
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    if asked.judge:
        judge(asked.judge)
        return
    base = None if asked.rows else open_pretrained(str(asked.base))
    for name, (read, count, settings) in RUNS.items():
        if asked.only and name not in asked.only:
            continue
        rows = [r for r in read(asked.texts, asked.data) if len(json.dumps(r)) < LONGEST]
        random.Random(0).shuffle(rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:count])
        out = asked.out / f"tune-{name}-{settings.get('adapter', 'lora')}-1.json"
        if base is None:
            (asked.rows / f"{name}.jsonl").write_text(lines)
        elif not out.exists():
            row = {"corpus": name} | record(base, lines, settings)
            out.write_text(json.dumps(row))
            print(f"{time.strftime('%H:%M:%S')} {out.name}: {row['cpu_seconds']} s, {row['stops']}", flush=True)


if __name__ == "__main__":
    main()
