"""Passages a second: settle's default embedder and indexing against Chroma's default pipeline, on the same passages.

    python bench/embedding.py --peer PYTHON [--rounds 5] [--most 1000]

PYTHON is of an environment with chromadb; ours needs `onnx` beside the extras `rag` and `dev`. The passages are what
settle cuts out of the docstrings of Python's standard library, one document a module.

Chroma embeds with its ONNXMiniLM_L6_V2, which downloads an ONNX file. In its place lies one of the same weights: the
safetensors of all-MiniLM-L6-v2 that `settle pull minilm` gets, in fp32, exported here by torch.onnx. Nothing else of
Chroma is touched: it pads every passage to 256 tokens, which is its default. Vectors of both sides are compared.

embedding: texts to vectors. pipeline: ours reads and cuts the documents, embeds, and commits passages, words and
vectors; Chroma's is `collection.add(documents=…)` of a PersistentClient, given the passages that ours made. Each side
is a process of its own and the two work in turns; ratios are those of a round, the first round is not counted. CPU
seconds are those of the process and its children.
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

CHROMA = Path(__file__).with_name("embedding_chroma.py")
OURS = ("PYTHONPATH", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # what the peer is not to see
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python of an environment with chromadb")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=1000, help="passages")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        work_for(Path(asked.side))
        return
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        os.environ |= {"SETTLE_HOME": str(work / "home"), "HOME": str(work / "person"), "ANONYMIZED_TELEMETRY": "false"}
        get_model(work)
        write_documents(work / "documents", asked.most)
        (work / "passages.json").write_text(json.dumps(cut(work)))
        sides = {"settle": Side([sys.executable, __file__, "--peer", "-", "--side", str(work)], ()),
                 "Chroma": Side([asked.peer, str(CHROMA), str(work)], OURS)}  # fmt: skip
        report(sides, asked.rounds, work)


def get_model(work: Path) -> None:
    """Get the model for both sides, from the same files."""
    from settle.base.event_log import Events
    from settle.library.pull.pull import find_offer
    from settle.retrieve.index.embedders.minilm import Minilm

    Minilm().prepare(Events())
    (work / "fetched").mkdir()
    folder = find_offer("minilm").fetch(work / "fetched", Events())
    target = work / "person" / ".cache" / "chroma" / "onnx_models" / "all-MiniLM-L6-v2" / "onnx"
    target.mkdir(parents=True)
    for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    (target / "vocab.txt").write_text("")  # looked for, and not read
    export(folder, target / "model.onnx")


def export(folder: Path, path: Path) -> None:
    import torch
    from transformers import BertModel

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.bert(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state

    example = torch.ones(2, 16, dtype=torch.long)
    axes = {name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "last_hidden_state")}
    torch.onnx.export(
        Hidden(), (example,) * 3, path, input_names=list(INPUTS), output_names=["last_hidden_state"],
        dynamic_axes=axes, opset_version=14, dynamo=False,
    )  # fmt: skip


def write_documents(folder: Path, most: int) -> None:
    """Docstrings of the standard library, about as many as are needed."""
    folder.mkdir()
    library, written = Path(sysconfig.get_path("stdlib")), 0
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts or written > most * 600:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        said = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(docstring for docstring in said if docstring)
        if text:
            name = "-".join(path.relative_to(library).with_suffix("").parts)
            (folder / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
            written += len(text)


def index(work: Path, name: str) -> int:
    """Index everything into a new collection with settle; return the number of passages."""
    from settle.base.event_log import Events
    from settle.retrieve.index.chunkers.structure import Structure
    from settle.retrieve.index.collection import IndexParts, create
    from settle.retrieve.index.embedders.minilm import Minilm
    from settle.retrieve.index.stores.lancedb import Lancedb
    from settle.retrieve.index.update_index import update

    with create(name) as collection:
        collection.decide(IndexParts(Minilm(), Lancedb(), Structure()))
        collection.follow([work / "documents"])
        return update(collection, Events()).embedded


def cut(work: Path) -> list[str]:
    """Return the passages that settle makes of the documents."""
    from settle.retrieve.index.collection import Collection

    index(work, "first")
    with Collection("first") as collection:
        passages = [passage.embedded for passage in collection.catalogue.passages.page(limit=1 << 20)]
        tokens = collection.vectors.vectorizer.count(passages)
    print(f"{len(passages):,} passages of {statistics.mean(tokens):.0f} tokens in the mean, {max(tokens)} at most")
    return passages


def work_for(work: Path) -> None:
    """Our side: does what it is told, line by line."""
    from settle.retrieve.index.embedders.minilm import Minilm

    passages = json.loads((work / "passages.json").read_text())
    vectorizer = Minilm().open()
    for number, line in enumerate(sys.stdin):
        began = time.perf_counter()
        if line.strip() == "embedding":
            vectors = vectorizer.documents(passages)
        else:
            assert index(work, f"round-{number}") == len(passages)
        print(time.perf_counter() - began, flush=True)
    np.save(work / "settle.npy", vectors)


class Side:
    """One side as a process."""

    def __init__(self, command: list[str], without: tuple[str, ...]) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in without}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def do(self, what: str) -> tuple[float, float]:
        """(seconds, CPU seconds) of one piece of work."""
        before = self._cpu()
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.said(), self._cpu() - before

    def said(self) -> float:
        """Return the seconds that it reports."""
        assert self.process.stdout
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate()

    def _cpu(self) -> float:
        process = psutil.Process(self.process.pid)
        times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
        return sum(t.user + t.system for t in times) + process.cpu_times().children_user


def report(sides: dict[str, Side], rounds: int, work: Path) -> None:
    number = len(json.loads((work / "passages.json").read_text()))
    for what in ("embedding", "pipeline"):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(rounds + 1):
            for name in sorted(sides, reverse=turn % 2 == 1):
                found[name].append(sides[name].do(what))
        counted = {name: times[1:] for name, times in found.items()}
        for name, times in counted.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{what:10} {name:8} {number / wall:7.1f} passages/s, {number / cpu:7.1f} a CPU second")
        for column, unit in enumerate(("wall", "CPU")):
            ratios = [b[column] / a[column] for a, b in zip(counted["settle"], counted["Chroma"], strict=True)]
            spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
            print(f"{what:10} {statistics.median(ratios):.2f} × Chroma by {unit}, rounds {spread}")
    for side in sides.values():
        side.end()
    ours, theirs = np.load(work / "settle.npy"), np.load(work / "chroma.npy")
    cosines = (ours * theirs).sum(1)
    print(f"cosine of a passage's two vectors: {cosines.min():.5f} at least, {cosines.mean():.5f} in the mean")
    print(f"nearest ten of each passage in common: {common(ours, theirs):.1%}")


def common(ours: np.ndarray, theirs: np.ndarray, k: int = 10) -> float:
    near = [np.argsort(-(v @ v.T) + 2 * np.eye(len(v)), axis=1)[:, :k] for v in (ours, theirs)]
    return float(np.mean([len({*a} & {*b}) / k for a, b in zip(*near, strict=True)]))


if __name__ == "__main__":
    main()
