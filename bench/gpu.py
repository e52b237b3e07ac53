"""Every bar that a card has, by one command, where a card is.

    python bench/gpu.py --text FOLDER --model DIR --rows rows.jsonl --peer trl=VENV --peer unsloth=VENV --out gpu.json

Parts: `card` (its name, memory and ceilings), `agreement` (each work of tests/pretend_card/works.py on the card against
the CPU, a resumed step among them, and the waits that CUDA itself reports), `steps` (tokens/s, share of the ceiling,
peak memory against the forecast), `runs` (`settle train` to its end: resume after a kill, forecast, gate)
and `peers` (bench/tune_speed.py on the same rows). `runs` needs --text, `peers` --model, --rows and --peer. The figures
go to --out, and as a section to stdout.

`--device cpu --tiny` runs the parts that need no card on small sizes, so that this file is known to work without one.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
from gpu_memory import SHAPES, Shape, step_bytes, step_of  # noqa: E402  beside this file

TINY = (Shape("llama", 100_000, 256, 32, 128, "float32"), Shape("qwen3", 100_000, 256, 32, 128, "bfloat16", "adamw"))
TIMED = 8  # steps after the two that warm up


def card(asked: argparse.Namespace) -> dict[str, Any]:
    """Return what computes, and the most operations per second of its types at the shapes of a layer."""
    import torch

    from settle.machine import accelerator, ceiling

    device = accelerator(asked.device)
    shapes = [(256, 64, 64)] if asked.tiny else [(8192, 2048, 2048), (8192, 2048, 5632)]
    rates = {d: ceiling(shapes, d, device, 0.1 if asked.tiny else 1.0) for d in device.dtypes}
    return {"name": device.name, "memory": device.memory_total, "torch": torch.__version__, "ceilings": rates}


def agreement(asked: argparse.Namespace) -> dict[str, Any]:
    """Losses, norms and tokens of each work against the CPU's, and how often CUDA says that the host waited."""
    import torch

    from settle.model.architectures import Architecture
    from tests.pretend_card.works import WORKS, Bench

    found: dict[str, Any] = {}
    works = {name: WORKS[name] for name in asked.works or WORKS}
    for name in asked.architectures or Architecture.parts():
        part, dtype = Architecture.parts()[name].TINY, torch.float32
        for work, do in works.items():
            waits: list[warnings.WarningMessage] = []

            @contextmanager
            def counted(kept: list[warnings.WarningMessage] = waits) -> Iterator[None]:
                if asked.device != "cuda":
                    yield
                    return
                with warnings.catch_warnings(record=True) as met:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    try:
                        yield
                    finally:
                        torch.cuda.set_sync_debug_mode("default")
                kept += [w for w in met if "synchroniz" in str(w.message)]

            here, there = do(Bench(part, "cpu", dtype)), do(Bench(part, asked.device, dtype, counted))
            off = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(here, there, strict=True))
            found[f"{name} {work}"] = {"off": off, "waits": len(waits)}
    return found


def steps(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second, the share of the ceiling, and the peak of a step against its forecast."""
    import torch

    from settle.machine import accelerator, ceiling
    from settle.train.state import LoopState

    device, found = accelerator(asked.device), []
    for shape in TINY if asked.tiny else SHAPES:
        trainer, part = step_of(shape, asked.device)
        state, times = LoopState(), []
        for number in range(2 + TIMED):
            if number == 2 and asked.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            trainer.take_step(state, 1.0)
            if asked.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        pace = shape.tokens / (sum(times[2:]) / TIMED)
        layer = part.options().layers[0]
        shapes = [(shape.tokens, layer.width, layer.width), (shape.tokens, layer.width, layer.inner)]
        most = ceiling(shapes, shape.dtype, device, 0.1 if asked.tiny else 1.0)
        entry = {"shape": vars(shape), "tokens_per_second": pace, "forecast_bytes": step_bytes(part, shape)}
        entry["share_of_ceiling"] = pace * part.flops_per_token(shape.context) / most
        entry["peak_bytes"] = torch.cuda.max_memory_allocated() if asked.device == "cuda" else None
        found.append(entry)
        del trainer
    return found


def runs(asked: argparse.Namespace) -> dict[str, Any]:
    """`settle train` twice, once killed half-way and resumed; the end of both, forecast beside actual, and the gate."""
    settle = [sys.executable, "-m", "settle"]
    command = [*settle, "train", str(asked.text), "--device", asked.device, "--steps", str(asked.steps), "--json"]
    whole = _result([*command, "--name", "gpu-whole"])
    halves = subprocess.Popen([*command, "--name", "gpu-halves"], stdout=subprocess.DEVNULL)
    time.sleep(asked.kill_after)
    halves.kill()
    halves.wait()
    resumed = _result([*settle, "resume", "gpu-halves", "--json"])
    kept = ("verdict", "best", "forecast", "actual", "gate")
    return {"whole": {k: whole.get(k) for k in kept}, "resumed": {k: resumed.get(k) for k in kept}}


def _result(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peers(asked: argparse.Namespace) -> dict[str, Any]:
    """bench/tune_speed.py: each peer in turns with `settle tune` on the same rows."""
    out = asked.out.with_name("tune_speed.json")
    given = [part for peer in asked.peer for part in ("--peer", peer)]
    command = [sys.executable, str(ROOT / "bench/tune_speed.py"), str(asked.model), str(asked.rows), *given]
    subprocess.run([*command, "--dtype", "bfloat16", "--out", str(out)], check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "card": card,
    "agreement": agreement,
    "steps": steps,
    "runs": runs,
    "peers": peers,
}


def section(found: dict[str, Any]) -> str:
    """Return the figures for a reader."""
    here = found.get("card", {})
    lines = [f"{here.get('name')}, torch {here.get('torch')}, `python bench/gpu.py`.", ""]
    if "agreement" in found:
        entries = found["agreement"].values()
        lines.append(
            f"{len(entries)} works on the card: at most {max(e['off'] for e in entries):.1e} off the CPU in float32, "
            f"{max(e['waits'] for e in entries)} waits in a warm step at most."
        )
    if "steps" in found:
        lines += ["", "| family | tokens | type | tokens/s | share of the ceiling | peak, GB | forecast ÷ peak |"]
        lines.append("|---|---|---|---|---|---|---|")
    for e in found.get("steps", []):
        s, peak = e["shape"], e["peak_bytes"]
        cells = [s["family"], f"{s['tokens']:,}", s["dtype"], f"{e['tokens_per_second']:,.0f}"]
        cells += [f"{e['share_of_ceiling']:.1%}", f"{peak / 1e9:.2f}" if peak else "–"]
        cells.append(f"{e['forecast_bytes'] / peak:.2f}" if peak else "–")
        lines.append(f"| {' | '.join(cells)} |")
    for name in ("runs", "peers"):
        if name in found:
            lines += ["", f"{name}: `{json.dumps(found[name])[:2000]}`"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS))
    parser.add_argument("--architectures", nargs="*")
    parser.add_argument("--works", nargs="*")
    parser.add_argument("--text", type=Path, help="folder of texts, for `runs`")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--kill-after", type=float, default=60.0, help="seconds")
    parser.add_argument("--model", type=Path, help="Hugging Face folder, for `peers`")
    parser.add_argument("--rows", type=Path, help="rows to tune on, for `peers`")
    parser.add_argument("--peer", action="append", default=[], help="NAME=VENV, as bench/tune_speed.py takes it")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    asked = parser.parse_args(arguments)
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        why = "torch sees no card" if torch.version.cuda else "this torch is a build without CUDA"
        print(f"no CUDA card can be used here: {why}.", file=sys.stderr)
        print("bench/gpu_trace.py checks the same paths without one; --device cpu --tiny tries this.", file=sys.stderr)
        return 3
    given = {"runs": bool(asked.text), "peers": bool(asked.model and asked.rows and asked.peer)}
    chosen = asked.parts or [name for name in PARTS if given.get(name, True)]
    lacking = [name for name in chosen if not given.get(name, True)]
    if lacking:
        print(f"{lacking[0]} lacks what it works on: see --help", file=sys.stderr)
        return 2
    found = {}
    for name in chosen:
        found[name] = PARTS[name](asked)
        asked.out.write_text(json.dumps(found, indent=1))
    print(section(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
