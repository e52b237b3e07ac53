"""KL, perplexity and same-top share from compact records, against the same formulas over whole distributions.

    python bench/kl.py REFERENCE.gguf SMALLER.gguf … --text held-out.txt --tokens 8192

A record keeps 128 likeliest tokens a position and 32 drawn from the rest. The other side keeps nothing: both files are
loaded in one child process of llama.cpp, and each position's divergence is summed over the whole vocabulary in float64.
Both read the same windows. Prints a Markdown table, and what a record takes on disk beside all logits in 16 bits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from settle.data.likelihoods import bytes_per_position, first_texts, text_windows
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.evaluate.divergence import divergence
from settle.formats.gguf import read_gguf
from settle.infer.scorer import Scorer
from settle.infer.scorer_child import Model

MOST_CHARACTERS = 4000  # of a text, so that there are several


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(P, V) in float64."""
    wide = logits.astype(float)
    wide -= wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def whole(reference: str, smaller: str, windows: list[list[int]], threads: int) -> dict[str, float]:
    """Means over whole distributions; run in a process of its own."""
    length = max(map(len, windows))
    ours, theirs = Model(reference, length, threads), Model(smaller, length, threads)
    kl, loss, same, number = 0.0, 0.0, 0, 0
    for ids in windows:
        at = 1
        for p_logits, q_logits in zip(ours.logits(ids), theirs.logits(ids), strict=True):
            for first in range(0, len(p_logits), 8):  # whole rows in float64 are large
                p, q = log_softmax(p_logits[first : first + 8]), log_softmax(q_logits[first : first + 8])
                came = ids[at : at + len(p)]
                kl += float((np.exp(p) * (p - q)).sum())
                loss -= float(q[np.arange(len(p)), came].sum())
                same += int((p.argmax(1) == q.argmax(1)).sum())
                number, at = number + len(p), at + len(p)
    return {"kl": kl / number, "loss": loss / number, "same_top": same / number, "tokens": number}


def in_child(reference: Path, smaller: Path, windows: list[list[int]], threads: int) -> dict[str, float]:
    """`whole`, in a process that ends with it."""
    asked = {"reference": str(reference), "smaller": str(smaller), "windows": windows, "threads": threads}
    done = subprocess.run(
        [sys.executable, __file__, "--child"], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    found = whole(**json.loads(sys.stdin.read()))
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's destructors may hang


def texts_of(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [text[i : i + MOST_CHARACTERS] for i in range(0, len(text), MOST_CHARACTERS)]


def measure(args: argparse.Namespace) -> None:
    tokenizer = PretrainedTokenizer(read_gguf(args.reference).metadata)
    texts = first_texts(tokenizer, texts_of(args.text), args.tokens)
    windows = text_windows(tokenizer, texts, args.window)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Scorer(args.reference, args.window, args.threads) as scorer:
            record = scorer.likelihoods(windows.ids, Path(folder) / "record")
        made = time.perf_counter() - start
        size, full = bytes_per_position(record.num_vocab), 2 * record.num_vocab
        print(
            f"{args.reference.name}: {record.num_positions:,} tokens in {made:.1f} s; {size} bytes a token on disk, "
            f"{full:,} for all logits in 16 bits ({full / size:.0f} times as many)\n"
        )
        columns = ("file", "KL (95 % interval)", "whole", "ratio", "perplexity", "whole", "same top", "whole", "s", "s")
        print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        for path in args.smaller:
            start = time.perf_counter()
            with Scorer(path, args.window, args.threads) as scorer:
                found = divergence(record, scorer.compare(record), windows.total_bytes)
            ours = time.perf_counter() - start
            start = time.perf_counter()
            wanted = in_child(args.reference, path, windows.ids, args.threads)
            theirs = time.perf_counter() - start
            print(
                f"| {path.name} | {found.kl.value:.5g} ({found.kl.low:.3g}–{found.kl.high:.3g}) | {wanted['kl']:.5g} "
                f"| {found.kl.value / wanted['kl']:.4f} | {found.perplexity:.4f} | {np.exp(wanted['loss']):.4f} "
                f"| {found.same_top.value:.2%} | {wanted['same_top']:.2%} | {ours:.1f} | {theirs:.1f} |",
                flush=True,
            )


def main() -> None:
    if "--child" in sys.argv:
        child()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("smaller", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
