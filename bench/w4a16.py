"""W4A16 as `settle shrink` writes it against plain round-to-nearest of the same bits: divergence on unseen text.

    python bench/w4a16.py MODEL.gguf --text TEXT… [--dither] [--windows 48] [--packed FOLDER]

Both have 4 bits for each weight and a scale for 32 of them, in the same matrices; all else is the model's. Plain
rounding takes what llm-compressor's minmax observer takes: a scale of the largest of 32 numbers ÷ 7.5, rounded to
bfloat16, and the nearest of 16 levels. settle's folder comes from `settle shrink MODEL --to W4A16`, with the importance
of its shipped calibration text, and is opened again by settle. TEXT is what is measured on; --dither: see auto.py.
Prints one JSON line: KL to the model in nats a token and perplexity of the three, with the 95 % interval of the paired
differences over windows of --length tokens. --packed: a folder that settle made of the same MODEL before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from auto import held_out_windows, unquantized

from settle.base.run import Run
from settle.infer.live_sampling import logprobs
from settle.model.decoder import Decoder
from settle.model.layers.frozen_weights import FrozenDense
from settle.model.pretrained import Pretrained
from settle.shrink.types.w4a16 import GROUP


def round_to_nearest(values: torch.Tensor) -> torch.Tensor:
    """Round each group of 32 numbers of a row to 16 levels of a symmetric scale."""
    groups = values.view(len(values), -1, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / 7.5).clamp_min(torch.finfo(torch.float32).tiny)
    scales = scales.bfloat16().float()
    return ((groups / scales).round().clamp(-8, 7) * scales).view_as(values)


def shrunk(source: Path, home: Path) -> Path:
    """Return the folder of `settle shrink --to W4A16`."""
    command = [sys.executable, "-m", "settle", "shrink", str(source), "--to", "W4A16", "--name", "packed"]
    subprocess.run(command, check=True, env={**os.environ, "SETTLE_HOME": str(home)}, stdout=subprocess.DEVNULL)
    os.environ["SETTLE_HOME"] = str(home)
    return next(path for path in (Run.find("packed").path / "out").iterdir() if path.is_dir() and "W4A16" in path.name)


@torch.no_grad()
def losses(models: list[Decoder], windows: list[np.ndarray]) -> np.ndarray:
    """Mean KL to the first model and mean loss of each window in every model, (M, W, 2)."""
    found: list[list[tuple[float, float]]] = [[] for _ in models]
    for window in windows:
        ids = window.tolist()
        wanted = logprobs(models[0], ids, range(len(ids))).float()
        for place, model in enumerate(models):
            own = logprobs(model, ids, range(len(ids))).float() if place else wanted
            kl = (wanted.exp() * (wanted - own)).sum(-1)[:-1].mean()
            found[place].append((float(kl), -float(own[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean())))
    return np.array(found)


def interval(differences: np.ndarray) -> list[float]:
    half = 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
    return [float(f"{end:.3g}") for end in (differences.mean() - half, differences.mean() + half)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--dither", action="store_true")
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--keep", type=Path, help="folder for the unquantized file")
    parser.add_argument("--packed", type=Path, help="settle's folder in W4A16, where it is made already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = unquantized(asked.model, asked.keep or Path(scratch), asked.dither)
        opened = Pretrained.open(source)
        ours = Pretrained.open(asked.packed or shrunk(source, Path(scratch, "home")))
        packed = [name for name, stored in ours.stored.items() if stored.tensor.dtype == "Q4_0"]
        windows = held_out_windows(opened.tokenizer, asked.text, asked.windows * asked.length, asked.length)
        base, own, plain = opened.load(), ours.load(), opened.load()
        for name in packed:
            plain.put(name, FrozenDense(round_to_nearest(opened.read(name))))
        whole, settles, plains = losses([base, own, plain], windows)
    result = {
        "model": asked.model.stem, "matrices": len(packed), "windows": len(windows),
        "kl": {"settle": round(settles[:, 0].mean(), 5), "plain": round(plains[:, 0].mean(), 5)},
        "kl_difference": interval(settles[:, 0] - plains[:, 0]),
        "perplexity": {
            name: round(float(np.exp(found[:, 1].mean())), 3)
            for name, found in (("model", whole), ("settle", settles), ("plain", plains))
        },
        "loss_difference": interval(settles[:, 1] - plains[:, 1]),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
