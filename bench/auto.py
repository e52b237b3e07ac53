"""Types chosen by measurement against llama.cpp's mixes of the same size: divergence from the model on unseen text.

    python bench/auto.py MODEL… --text TEXT… [--recipes Q2_K Q3_K_M Q4_K_M Q5_K_M] [--dither] [--engine] [--train TEXT]

MODEL: a folder in Hugging Face's layout or a GGUF file, unquantized. The importance matrix is the same on both sides
and, as the sensitivities, comes from the shipped calibration text; TEXT is what is measured on (JSON, JSON lines, plain
text). --dither: models that were made from a quantized file lie on its lattice, and the type they came from costs
nothing; every weight is moved by up to half a step of a lattice (of 16 levels in the layers, 255 in the tables), which
leaves a model like one that never was on it. --engine: measured in llama.cpp, activations rounded as it does, instead
of in torch. --train: another model, trained here, of a width that 256 divides.

Prints Markdown: bytes, mean divergence of both in nats a token with the standard error of their difference over
windows, the ratio; then how well the divergence was predicted. Exits with 1 when auto does not have less everywhere.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from settle.formats.gguf import export_gguf, read_gguf
from settle.model.pretrained import Pretrained
from settle.shrink.calibration import calibration_texts, calibration_windows
from settle.shrink.quantizers.auto import Auto
from settle.shrink.session import measure
from settle.shrink.types.budget import cheapest_types
from settle.shrink.types.mixes import mix_types
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf
from tests.shrink.fake_quant import FakeQuantized

LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--recipes", nargs="+", default=["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"])
    parser.add_argument("--windows", type=int, default=64, help="of held-out text")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a window of held-out text")
    parser.add_argument("--measure-tokens", type=int, default=4096, help="of the calibration text")
    parser.add_argument("--dither", action="store_true")
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--train")
    parser.add_argument("--keep", help="folder for the unquantized files and tables")
    asked = parser.parse_args()
    rows, pairs = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.keep or scratch)
        sources = [unquantized(Path(model), folder, asked.dither) for model in asked.models]
        if asked.train:
            sources.append(trained_here(Path(asked.train), folder))
        for source in sources:
            found, told = compared(source, folder, asked)
            rows, pairs = rows + found, pairs + told
            summary(rows, pairs)
    if not all(row["auto"] < row["mix"] for row in rows):
        sys.exit(1)


def compared(source: Path, folder: Path, asked: argparse.Namespace) -> tuple[list[dict], list[tuple[float, float]]]:
    """One model in all sizes."""
    started = time.monotonic(), time.process_time()
    opened = Pretrained.open(source)
    texts = calibration_texts()
    windows = calibration_windows(opened.tokenizer, texts, asked.measure_tokens, LENGTH).windows
    found = measure(source, windows, "shipped")
    took = time.monotonic() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{source.stem}: measured in {took[0]:.0f} s ({took[1]:.0f} s of cores), memory at most {peak:.1f} GiB")
    found.costs.save(folder / f"{source.stem}.json")
    held_out = held_out_windows(opened.tokenizer, asked.text, asked.windows * asked.length, asked.length)
    print(f"held out: {len(held_out)} windows, {sum(map(len, held_out))} tokens", flush=True)
    file = read_gguf(source)
    if asked.engine:
        divergence = in_engine(source, folder, found.importance, held_out)
    else:
        model = opened.load(trainable=True)
        divergence = FakeQuantized(model, opened.part, file, found.importance, held_out).divergence
    rows, pairs = [], []
    for recipe in asked.recipes:
        mix = {name: c.kind for name, c in mix_types(file, recipe, True).items()}
        budget = file_bytes(file, mix)
        auto = cheapest_types(file, found.costs, budget, Auto().slow_below)
        kls = [by_window(divergence(kinds), held_out) for kinds in (mix, auto)]
        pairs += [(found.costs.predicted(kinds), float(kl.mean())) for kinds, kl in zip((mix, auto), kls, strict=True)]
        error = float((kls[1] - kls[0]).std(ddof=1) / len(kls[0]) ** 0.5)
        rows.append(
            {
                "model": source.stem, "recipe": recipe, "mix_bytes": budget, "auto_bytes": file_bytes(file, auto),
                "mix": float(kls[0].mean()), "auto": float(kls[1].mean()), "error": error,
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows, pairs


def summary(rows: list[dict], pairs: list[tuple[float, float]]) -> None:
    print("\n| model | size of | MB, mix | MB, auto | KL, mix | KL, auto | ± of the difference | less by |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        less = 1 - row["auto"] / row["mix"]
        print(
            f"| {row['model']} | {row['recipe']} | {row['mix_bytes'] / 1e6:.2f} | {row['auto_bytes'] / 1e6:.2f} "
            f"| {row['mix']:.5f} | {row['auto']:.5f} | {row['error']:.5f} | {less:.0%} |"
        )
    print(f"\nmedian: less by {1 - np.median([row['auto'] / row['mix'] for row in rows]):.0%}")
    logs = np.log(np.array(pairs))
    spread = np.corrcoef(logs.T)[0, 1] if len(logs) > 2 else float("nan")
    off = logs[:, 1] - logs[:, 0]
    print(f"predicted: correlation of logarithms {spread:.3f}, measured ÷ predicted {np.exp(off.mean()):.2f}", end=" ")
    print(f"on average, {np.exp(off.min()):.2f} to {np.exp(off.max()):.2f}", flush=True)


def by_window(kl: np.ndarray, windows: list[np.ndarray]) -> np.ndarray:
    """Mean of each window that was used."""
    ends = np.cumsum([len(w) for w in windows])
    starts = [0, *ends[: int(np.searchsorted(ends, len(kl), side="right")) - 1]]
    return np.add.reduceat(kl, starts) / np.diff([*starts, len(kl)])


def held_out_windows(tokenizer, paths: list[str], num_tokens: int, length: int = LENGTH) -> list[np.ndarray]:
    """As many windows from each file, from all over it."""
    share = num_tokens // len(paths)
    found = [calibration_windows(tokenizer, texts_of(Path(p)), share, length).windows for p in paths]
    return [w for windows in zip(*found, strict=False) for w in windows]


def texts_of(path: Path) -> list[str]:
    """At most a few hundred texts of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return [text[-100_000:]]
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [_said(row) for row in rows[:: max(1, len(rows) // 200)]]


def _said(value: object) -> str:
    """Every string in a row, in order."""
    if isinstance(value, dict):
        return "\n".join(filter(None, (_said(v) for k, v in value.items() if k not in ("from", "role"))))
    if isinstance(value, list):
        return "\n".join(filter(None, map(_said, value)))
    return value if isinstance(value, str) else ""


def unquantized(model: Path, folder: Path, dither: bool) -> Path:
    """Return the model as a GGUF file in F16."""
    target = folder / f"{model.stem}{'-dithered' if dither else ''}.gguf"
    if model.suffix == ".gguf" and not dither:
        return model
    if target.exists():
        return target
    opened = Pretrained.open(model)
    weights = {name: dithered(opened.read(name), name) if dither else opened.read(name) for name in opened.stored}
    return export_gguf(opened.part, weights, opened.tokenizer, target, "f16", {"name": target.stem})


def dithered(values: torch.Tensor, name: str) -> torch.Tensor:
    """Move values by up to half a step of 16 levels in every block of 32, of 255 levels in the tables."""
    if values.ndim < 2 or values.shape[-1] % 32:
        return values
    blocks = values.float().view(-1, 32)
    steps = 15 if ".layers." in name else 254
    step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / steps
    random = torch.Generator().manual_seed(len(name))
    return (blocks + step * (torch.rand(blocks.shape, generator=random) - 0.5)).view(values.shape)


def in_engine(source: Path, folder: Path, importance, windows: list[np.ndarray]):
    """Divergence of the quantized file in llama.cpp from the source in llama.cpp."""
    from settle.infer.scorer import Scorer

    with Scorer(source, LENGTH) as scorer:
        own = scorer.likelihoods([w.tolist() for w in windows], folder / "likelihoods")

    def divergence(kinds: dict[str, str]) -> np.ndarray:
        made = quantize_gguf(source, folder / "tried.gguf", kinds, importance)
        with Scorer(made, LENGTH) as scorer:
            compared = scorer.compare(own)
        made.unlink()
        # a window has a value for each token but the first
        per = np.split(np.asarray(compared.kl, np.float64), np.cumsum([len(w) - 1 for w in windows])[:-1])
        return np.concatenate([np.append(kl, kl.mean()) for kl in per])

    return divergence


def trained_here(text: Path, folder: Path) -> Path:
    """Train a Llama of width 256 on a text for some hundred steps; every one of its rows takes K-quants."""
    from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
    from settle.model.architectures.llama import Llama

    target = folder / "trained-here.gguf"
    if target.exists():
        return target
    whole = text.read_text(encoding="utf-8")
    learned = whole[: int(0.9 * len(whole))]
    tokenizer = ByteBpeTokenizer.train([learned], 2048, folder)
    part = Llama(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=tokenizer.vocab_size, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = part.build(seed=0)
    ids = torch.from_numpy(tokenizer.encode(learned).astype("int64"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    random = torch.Generator().manual_seed(0)
    length, count, steps = 128, 8, 400
    bounds = torch.arange(0, (count + 1) * length, length, dtype=torch.int32)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, 3 * (1 - step / steps))
        starts = torch.randint(0, len(ids) - length - 1, (count,), generator=random)
        places = (starts[:, None] + torch.arange(length)).flatten()
        loss = torch.nn.functional.cross_entropy(model.logits(model(ids[places], bounds)), ids[places + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained-here: loss {loss.item():.2f}", flush=True)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return export_gguf(part, weights, tokenizer, target, "f16", {"name": target.stem})


if __name__ == "__main__":
    main()
