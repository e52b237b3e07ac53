"""How often the right passage is found: settle beside Chroma, LlamaIndex and Haystack, on the gold sets of `gold.py`.

    python bench/retrieval.py GOLD --peers PYTHON --model FOLDER --cache FILE [--sets …] [--systems …] [--split test]

All have the same embedder, all-MiniLM-L6-v2: settle pulls it; the peers (see `retrieval_peers.py`) are run by PYTHON,
an interpreter that has them, and read the same weights from FOLDER. Each system is asked each question and gives
passages; what follows is the same for all. The rank of a question is that of the first right one of the distinct
results: a result is a document, or in Python's documentation a section of one. A passage belongs to every section that
half of its runs of four words come from, or that it has half of, and is listed as the one it has most of. Who gives
whole pages has found all sections of each; with --pages a result is a page for everyone.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from settle.base.event_log import Events
from settle.base.statistics import paired_test
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.collection import Collection, IndexParts, create
from settle.retrieve.index.embedders import Embedder
from settle.retrieve.index.stores import Store
from settle.retrieve.index.update_index import update
from settle.retrieve.search import search

SETS = ("foldoc", "wordnet", "python", "man", "django", "admin")
PEERS = ("chroma", "chroma_whole", "llamaindex", "llamaindex_hybrid", "haystack", "haystack_hybrid")
FOUND = 50  # passages asked for
Found = list[tuple[str, str]]  # (path below the documents, text), the best first


@contextmanager
def indexed(documents: Path) -> Iterator[Collection]:
    """Yield a collection with defaults, made where SETTLE_HOME is."""
    with create(documents.parent.name) as collection:
        embedder = Embedder.make("minilm", {})
        embedder.prepare(Events())
        collection.decide(IndexParts(embedder, Store.make("lancedb", {}), Chunker.make("structure", {})))
        collection.follow([documents])
        update(collection, Events())
        yield collection


def settle(documents: Path, questions: list[dict]) -> Iterator[Found]:
    with indexed(documents) as collection:
        for question in questions:
            hits = search(collection, question["question"], FOUND)
            yield [(os.path.relpath(s.path, documents), hit.passage.text) for hit in hits for s in hit.occurrences]


def peers(
    systems: list[str], documents: Path, questions: list[dict], args: argparse.Namespace
) -> dict[str, list[Found]]:
    """Return what each of the peers finds, all in one process."""
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder, "asked"), Path(folder, "out")
        out.mkdir()
        asked.write_text("\n".join(map(json.dumps, questions)))
        script = str(Path(__file__).with_name("retrieval_peers.py"))
        command = [args.peers, "-W", "ignore", script, str(documents.resolve()), str(asked), str(out)]
        command += ["--systems", *systems, "--model", str(args.model), "--cache", str(args.cache)]
        subprocess.run(command, check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
        lines = {system: (out / f"{system}.jsonl").read_text().splitlines() for system in systems}
    return {system: [json.loads(line) for line in of] for system, of in lines.items()}


class Judge:
    """Tells the rank of the right result, for one set."""

    def __init__(self, folder: Path, pages: bool) -> None:
        self.sections: dict[str, list[tuple[str, set]]] = defaultdict(list)
        if (folder / "sections.jsonl").exists() and not pages:
            for row in read(folder / "sections.jsonl"):
                self.sections[row["path"]].append((row["section"], runs(f"{row['heading']} {row['text']}")))

    def rank(self, question: dict, found: Iterable[tuple[str, str]]) -> int | None:
        """From 1, or None."""
        seen = set()
        for path, text in found:
            place, all_places = self.places(path, text)
            if place in seen:
                continue
            seen.add(place)
            wanted = (question["answer"], question["section"]) if self.sections else (question["answer"], "")
            if wanted in all_places or path in question["also"]:
                return len(seen)
        return None

    def places(self, path: str, text: str) -> tuple[tuple[str, str], set[tuple[str, str]]]:
        """Return what a passage is listed as, and all that it belongs to."""
        if not self.sections:
            return (path, ""), {(path, "")}
        own = runs(text)
        common = [(len(own & of), name, len(of)) for name, of in self.sections[path]]
        most, main, _ = max(common, default=(0, "", 0))
        main = main if most else ""
        return (path, main), {(path, main), *((path, n) for c, n, of in common if c and 2 * c >= min(len(own), of))}


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of four words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--peers", help="a Python interpreter that has them")
    parser.add_argument("--model", type=Path, help="a folder with MiniLM's weights in Hugging Face's layout")
    parser.add_argument("--cache", type=Path, help="a file for what the peers embedded")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="that lie in GOLD")
    parser.add_argument("--systems", nargs="+", default=("settle", *PEERS), choices=("settle", *PEERS))
    parser.add_argument("--pages", action="store_true", help="in Python's documentation a result is a page")
    parser.add_argument("--split", default="test", choices=("test", "dev", "all"))
    parser.add_argument("--out", type=Path, help="a file for every rank, as JSON")
    args = parser.parse_args()
    ranks: dict[str, dict[str, list]] = defaultdict(dict)
    print("| set | system | recall@1 | recall@5 | recall@10 | MRR |\n|---|---|--:|--:|--:|--:|")
    for name in args.sets:
        folder = args.gold / name
        judge = Judge(folder, args.pages)
        questions = [row for row in read(folder / "questions.jsonl") if args.split in (row["split"], "all")]
        documents = folder / "documents"
        asked = [("settle",)] * ("settle" in args.systems) + [[s for s in args.systems if s != "settle"]]
        for systems in filter(None, asked):
            own = systems == ("settle",)
            found = {"settle": settle(documents, questions)} if own else peers(systems, documents, questions, args)
            for system, given in found.items():
                ranks[name][system] = [judge.rank(q, one) for q, one in zip(questions, given, strict=True)]
                print(f"| {name}, {len(questions)} | {system} | {row_of(ranks[name][system])} |", flush=True)
    for k in (1, 5):
        compare(ranks, k)
    if args.out:
        args.out.write_text(json.dumps(ranks) + "\n")


def row_of(ranks: list) -> str:
    at = np.array([rank or np.inf for rank in ranks])
    return " | ".join([*(f"{(at <= k).mean():.1%}" for k in (1, 5, 10)), f"{(1 / at).mean():.3f}"])


def compare(ranks: dict[str, dict[str, list]], k: int) -> None:
    """Print recall@k against each of the peers, in points.

    The lead on every set, how many sets it is clear on, and last the mean, which one set may dominate.
    """
    hits = {name: {s: [float(bool(r) and r <= k) for r in of] for s, of in by.items()} for name, by in ranks.items()}
    for system in PEERS:
        tests = {
            name: paired_test(by[system], by["settle"]).difference
            for name, by in hits.items()
            if {system, "settle"} <= by.keys()
        }
        if tests:
            each = ", ".join(
                f"{name} {100 * p.value:+.1f} ({100 * p.low:+.1f} to {100 * p.high:+.1f})" for name, p in tests.items()
            )
            ahead, behind = (sum(sign(p) > 0 for p in tests.values()) for sign in (lambda p: p.low, lambda p: -p.high))
            clear = f"ahead on {ahead}, behind on {behind}"
            print(
                f"recall@{k}, settle − {system}: {each}; {clear} of {len(tests)} sets; median"
                f" {100 * np.median([p.value for p in tests.values()]):+.1f}, mean"
                f" {100 * np.mean([p.value for p in tests.values()]):+.1f}"
            )


if __name__ == "__main__":
    main()
