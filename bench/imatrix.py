"""What an importance matrix is worth: the same mixes with it and without, as KL from the unquantized file in llama.cpp.

    python bench/imatrix.py MODEL.gguf… --text TEXT… [--recipes Q3_K_M Q2_K] [--tokens 2048]

MODEL: an unquantized GGUF file. The matrix is measured on settle's own calibration text, KL on TEXT (plain text, JSON
or JSON lines). Prints Markdown. Exits with 1 when the matrix does not help everywhere.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from auto import LENGTH, held_out_windows

from settle.formats.gguf import read_gguf
from settle.infer.scorer import Scorer
from settle.model.pretrained import Pretrained
from settle.shrink.calibration import calibration_texts, calibration_windows
from settle.shrink.types.mixes import mix_types
from settle.shrink.types.quantize_file import quantize_gguf
from tests.shrink.importance_of import importance_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--recipes", nargs="+", default=["Q3_K_M", "Q2_K"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    helps = True
    print("| model | mix | KL without | KL with | less by |\n|---|---|--:|--:|--:|")
    for source in asked.models:
        opened = Pretrained.open(source)
        fitted = calibration_windows(opened.tokenizer, calibration_texts(), 8192, LENGTH).windows
        importance = importance_of(opened.load(), opened.part, fitted, "shipped")
        windows = [w.tolist() for w in held_out_windows(opened.tokenizer, asked.text, asked.tokens)]
        with tempfile.TemporaryDirectory() as folder:
            with Scorer(source, LENGTH, asked.threads) as scorer:
                own = scorer.likelihoods(windows, Path(folder, "likelihoods"))
            for recipe in asked.recipes:
                found = []
                for matrix in (None, importance):
                    chosen = mix_types(read_gguf(source), recipe, matrix is not None)
                    kinds = {name: choice.kind for name, choice in chosen.items()}
                    made = quantize_gguf(source, Path(folder, "tried.gguf"), kinds, matrix)
                    with Scorer(made, LENGTH, asked.threads) as scorer:
                        found.append(float(np.mean(scorer.compare(own).kl)))
                    made.unlink()
                less = 1 - found[1] / found[0]
                helps &= less > 0
                print(f"| {source.stem} | {recipe} | {found[0]:.4f} | {found[1]:.4f} | {less:.0%} |", flush=True)
    sys.exit(0 if helps else 1)


if __name__ == "__main__":
    main()
