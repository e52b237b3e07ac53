"""Time to nanoGPT's loss: its CPU recipe against `settle train` on the same file and split, paired.

    python bench/nanogpt.py NANOGPT TEXT [--rounds 1] [--peer-seconds S]

NANOGPT is a checkout of karpathy/nanoGPT, TEXT the shakespeare_char text or any other in UTF-8; the first 90 % of its
characters train, the last 10 % are held out. Every round has another seed, on both sides. A settle run starts from an
empty home (no remembered probe, no token store); its clock runs from the start of the process to the evaluation on the
whole held-out text, which is made again here from the exported weights. With --peer-seconds the peer is not run again.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEER = [
    *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1"),
    *("--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000"),
    *("--lr_decay_iters=2000", "--dropout=0.0"),
]
PEER_SEED = "manual_seed(1337 + "
TARGET = 1.8857 / math.log(2)  # bits per byte: the peer's val loss, nats per character, and its text is ASCII
RACE = ["--size", "1M", "--context", "64", "--batch-tokens", "1024", "--steps", "72", "--data.vocab-size", "2048"]


def peer(checkout: Path, text: Path, number: int) -> dict[str, float]:
    """Seconds and bits per byte of nanoGPT's own script, whose only change is its seed. number: of the round."""
    data = checkout / "data" / "shakespeare_char"
    (data / "input.txt").write_bytes(text.read_bytes())
    subprocess.run([sys.executable, "-X", "utf8", data / "prepare.py"], check=True, capture_output=True)
    script = (checkout / "train.py").read_text()
    if PEER_SEED not in script:
        raise SystemExit(f"{checkout}/train.py does not say {PEER_SEED}")
    (checkout / "train_seeded.py").write_text(script.replace(PEER_SEED, f"{PEER_SEED}{number} + "))
    # without what importing settle has set here: it would change how the peer's threads wait
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "train_seeded.py", *PEER], cwd=checkout, env=env, check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    loss = float(re.findall(r"val loss ([\d.]+)", done.stdout)[-1])
    held_out = halves(text)[1]
    return {"seconds": seconds, "bits_per_byte": loss / math.log(2) * len(held_out) / len(held_out.encode())}


def halves(text: Path) -> tuple[str, str]:
    """Return what is trained on and what is held out, as nanoGPT's `prepare.py` divides it."""
    content = text.read_text(encoding="utf-8")
    return content[: int(len(content) * 0.9)], content[int(len(content) * 0.9) :]


def ours(text: Path, settings: list[str], number: int) -> dict[str, Any]:
    """Seconds to the whole evaluation, and what it says; the run's folder is thrown away. number: of the round."""
    with tempfile.TemporaryDirectory() as folder:
        home, train, held_out = Path(folder, "home"), Path(folder, "train.txt"), Path(folder, "held_out.txt")
        for path, content in zip((train, held_out), halves(text), strict=True):
            path.write_text(content, encoding="utf-8", newline="")
        command = [sys.executable, "-m", "settle", "train", str(train), "--data.held-out-from", str(held_out)]
        began = time.time()
        done = subprocess.run(
            [*command, "--data.clean=false", "--name", "race", "--json", "--seed", str(number), *settings],
            env={**os.environ, "SETTLE_HOME": str(home)},
            capture_output=True,
            text=True,
        )
        ended = time.time()
        if done.returncode:
            raise SystemExit(done.stderr)
        (run,) = (home / "runs").iterdir()
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        whole = next(e for e in events if e["kind"] == "eval" and e.get("whole"))
        steps = [e["time"] for e in events if e["kind"] == "step"]
        plan = json.loads((run / "plan.json").read_text())
        return {
            "seconds": whole["time"] - began,
            "before_first_step": steps[0] - began,
            "steps": steps[-1] - steps[0],
            "process": ended - began,
            "bits_per_byte": bits_per_byte(run / "out", held_out),
            "told": whole["bits_per_byte"],
            "dtype": plan["dtype"],
            "architecture": plan["architecture"],
        }


def bits_per_byte(out: Path, held_out: Path) -> float:
    """Bits per byte of the exported weights on the whole text, cut into full contexts."""
    import torch

    from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
    from settle.model.pretrained import Pretrained
    from settle.train.objectives.next_token import NextToken

    folder = next(out.rglob("model.safetensors")).parent
    opened = Pretrained.open(folder)
    model = opened.load()
    text = held_out.read_text(encoding="utf-8")
    ids = torch.tensor(ByteBpeTokenizer(folder).encode(text).tolist())
    context, nats = opened.part.max_position_embeddings, 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, context):
            piece = ids[start : start + context + 1]
            bounds = torch.tensor([0, len(piece) - 1], dtype=torch.int32)
            nats += float(NextToken().loss(model, piece[:-1], piece[1:], bounds)[0])
    return nats / math.log(2) / len(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("nanogpt", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer-seconds", type=float)
    asked, settings = parser.parse_known_args()
    for number in range(1, asked.rounds + 1):
        theirs = {"seconds": asked.peer_seconds, "bits_per_byte": TARGET}
        if asked.peer_seconds is None:
            theirs = peer(asked.nanogpt, asked.text, number)
        made = ours(asked.text, settings or RACE, number)
        print(json.dumps({"nanoGPT": theirs, "settle": made, "ratio": theirs["seconds"] / made["seconds"]}))


if __name__ == "__main__":
    main()
