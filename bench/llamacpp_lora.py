"""LoRA over a quantized base: `settle tune --quantize as-is` against a fork of llama.cpp, on the same rows.

    python bench/llamacpp_lora.py BINARY MODEL.gguf ROWS.json [--rows-trained 40] [--held-out 16] [--lr 2e-4]

BINARY: `llama-finetune-lora` of github.com/tetherto/qvac-fabric-llm.cpp, built with cmake. Both train rank 8 on
queries, keys, values and outputs, one row a step, one thread, AdamW without decay, the loss on answers only,
at the same time and in seconds of the processor, so that a busy machine hits both alike. Rows (Alpaca) are those whose
conversation fills 3/4 to all of 256 tokens: the fork pads each to its context. A speed is of the tokens of the rows,
from the second step to the last; a ratio is that of the same span of steps. The held-out loss is of the answers of
other rows, by llama.cpp with each side's adapter. Prints one JSON line.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.run import Run
from settle.infer.scorer import Overrides, Scorer
from settle.model.pretrained import Pretrained

CONTEXT, RANK = 256, 8
TARGETS = "q_proj,k_proj,v_proj,o_proj"
MODULES = "attn_q,attn_k,attn_v,attn_o"
Row = dict[str, object]


def chosen_rows(path: Path, base: Pretrained, number: int) -> list[tuple[Row, list[int], int]]:
    """Return rows of about CONTEXT tokens: messages, ids, and how many ids stand before the answer."""
    tokenizer = base.tokenizer
    ends = ("" if i is None else tokenizer.tokens[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
    template = ChatTemplate(tokenizer.chat_template, *ends)
    found = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        question = {"role": "user", "content": asked}
        messages = [question, {"role": "assistant", "content": row["output"]}]
        ids = list(map(int, tokenizer.encode(template.render(messages))))
        if 3 * CONTEXT // 4 <= len(ids) < CONTEXT:
            before = len(tokenizer.encode(template.render([question], add_generation_prompt=True)))
            found.append(({"messages": messages}, ids, before))
    if len(found) < number:
        raise SystemExit(f"{path} has {len(found)} rows of that length, {number} are needed")
    return found[:number]


def seconds_of(pid: int) -> float:
    """Return the seconds of the processor that a process has taken."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(sides: dict[str, tuple[list[str], Callable[[], int]]], folder: Path) -> dict[str, dict[int, float]]:
    """Run both sides at once, one core each where there are two; return seconds of the processor after each step."""
    running, seen = {}, {name: dict[int, float]() for name in sides}
    for name, (command, _) in sides.items():
        log = (folder / f"{name}.log").open("w")
        running[name] = subprocess.Popen(command, stdout=log, stderr=log)
    while running:
        time.sleep(0.1)
        for name, process in list(running.items()):
            seen[name].setdefault(sides[name][1](), seconds_of(process.pid))
            if process.poll() is not None:
                del running[name]
                if process.returncode not in (0, 3):
                    raise SystemExit((folder / f"{name}.log").read_text()[-2000:])
    return seen


def span(seen: dict[int, float], first: int, last: int) -> float:
    return seen[last] - seen[first]


def held_out_loss(model: Path, adapter: Path | None, rows: list[tuple[Row, list[int], int]]) -> list[float]:
    """Mean loss of each row's answer."""
    with Scorer(model, CONTEXT, threads=1, overrides=Overrides(adapter=adapter)) as scorer:
        found = scorer.logprobs([ids for _, ids, _ in rows])
    return [-float(np.mean(values[before - 1 :])) for values, (_, _, before) in zip(found, rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rows-trained", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--lr", default="2e-4")
    asked = parser.parse_args()
    # the fork holds a twentieth of its rows out
    given = asked.rows_trained + -(-asked.rows_trained // 19)
    rows = chosen_rows(asked.rows, Pretrained.open(asked.model), given + asked.held_out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["SETTLE_HOME"] = str(folder / "home")
        for name, number in (("all", given), ("trained", asked.rows_trained)):
            lines = [json.dumps(row) for row, _, _ in rows[:number]]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        held = [json.dumps(row) for row, _, _ in rows[given:]]
        (folder / "held.jsonl").write_text("\n".join(held) + "\n", encoding="utf-8")
        theirs = folder / "theirs.gguf"
        fork = [str(asked.binary), "-m", str(asked.model), "-f", str(folder / "all.jsonl"), "-c", str(CONTEXT)]
        fork += ["-b", str(CONTEXT), "-ub", str(CONTEXT), "-t", "1", "-fa", "off", "-ngl", "0"]
        fork += ["--lora-rank", str(RANK), "--lora-alpha", str(2 * RANK), "--lora-modules", MODULES]
        fork += ["--assistant-loss-only", "--weight-decay", "0", "--learning-rate", asked.lr, "--lora-seed", "1"]
        fork += ["--output-adapter", str(theirs)]
        settle = [sys.executable, "-m", "settle", "tune", str(asked.model), str(folder / "trained.jsonl")]
        settle += [
            "--name",
            "ours",
            "--quantize",
            "as-is",
            "--adapter.rank",
            str(RANK),
            "--adapter.alpha",
            str(2 * RANK),
        ]
        settle += ["--adapter.targets", TARGETS, "--batch-rows", "1", "--threads", "1", "--no-compare"]
        settle += [
            "--optimizer.lr",
            asked.lr,
            "--steps",
            str(asked.rows_trained),
            "--rows.held-out-from",
            str(folder / "held.jsonl"),
        ]

        def their_step() -> int:
            log = folder / "fork.log"
            done = re.findall(r"data=0*(\d+)/", log.read_text(errors="replace")) if log.exists() else []
            return int(done[-1]) if done else 0

        def our_step() -> int:
            logs = list((folder / "home/runs").glob("*/events.jsonl"))
            return logs[0].read_text().count('"kind": "step"') if logs else 0

        seen = watched({"settle": (settle, our_step), "fork": (fork, their_step)}, folder)
        ours = folder / "ours.gguf"
        export = [sys.executable, "-m", "settle", "export", "ours", "--to", "lora-gguf", "--out", str(ours)]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        trains = asked.rows_trained
        both = {k: min(max(s), trains) for k, s in seen.items()}
        last = min(both.values())
        spans = [(2, last // 2), (last // 2, last)] if last > 8 else [(2, last)]
        tokens = sum(len(ids) for _, ids, _ in rows[2:last])
        losses = {"base": None, "settle": ours, "fork": theirs}
        found = {name: held_out_loss(asked.model, path, rows[given:]) for name, path in losses.items()}
        result = {
            "model": Run.find("ours").name and asked.model.stem, "steps": last, "tokens_per_step": tokens / (last - 2),
            "tokens_per_second": {name: round(tokens / span(s, 2, last), 1) for name, s in seen.items()},
            "ratios": [round(span(seen["fork"], *ends) / span(seen["settle"], *ends), 2) for ends in spans],
            "held_out": {name: round(float(np.mean(values)), 4) for name, values in found.items()},
            "rows_held_out": asked.held_out,
        }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
