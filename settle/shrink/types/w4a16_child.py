"""transformers and compressed-tensors in a process of their own. Run by `w4a16.py`, never imported by it.

Reads one JSON object `{"folder", "windows", "target"}` on stdin, and writes log-probabilities to the target: an array
(L, V) for each window of L ids, float32.
"""

import importlib
import json
import sys

import numpy as np
import torch


def main(folder: str, windows: list[list[int]], target: str) -> None:
    transformers = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy() for ids in windows]
    np.savez(target, *logits)


if __name__ == "__main__":
    main(**json.load(sys.stdin))
