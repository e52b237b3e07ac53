"""Where vectors are kept, side by side: recall, latency, size after twenty rounds, memory; and what commits cost.

    python bench/stores.py near [--counts 10000 100000] [--vectors FILE.npy]   # recall and latency against exact search
    python bench/stores.py rounds [--passages 5000]    # size after 20 rounds of deleting and adding everything
    python bench/stores.py memory [--counts 50000 300000]       # the most memory that adding and asking takes
    python bench/stores.py catalogue [--passages 100000]        # passages committed a second, and what a count takes

Every store is measured in a process of its own, with two threads' worth of cores. Without --vectors they are made: a
thousand topics, with as much of the spread in few directions as the vectors of MiniLM have; what is asked for is drawn
like them. `exact` is a product of matrices in numpy over everything, the yardstick of both figures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.reindex import join_embedder  # noqa: E402

WIDTH, QUESTIONS, NEAREST, BATCH = 384, 300, 10, 512
ROUNDS = 20
STORES = ("lancedb", "chroma")


def made_vectors(count: int, seed: int) -> np.ndarray:
    """float32 (count, 384), of length 1."""
    topics = np.random.default_rng(0).standard_normal((1000, WIDTH)).astype(np.float32)
    random = np.random.default_rng(seed)
    spread = (np.arange(1, WIDTH + 1) ** -0.35).astype(np.float32)
    out = np.empty((count, WIDTH), np.float32)
    for first in range(0, count, 10_000):
        some = out[first : first + 10_000]
        some[:] = topics[random.integers(0, 1000, len(some))]
        some += 0.8 * random.standard_normal(some.shape, np.float32)
        some *= spread
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return out


def opened(store: str, folder: Path) -> Any:
    from settle.base.registry import part

    return part("retrieve/index/stores", store)().open(folder, "docs-1234", WIDTH)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak() -> int:
    """Return the most bytes that this process has held at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def times_of(ask: Callable[[np.ndarray], Any], questions: np.ndarray) -> dict[str, float]:
    """Milliseconds on the clock and of the processor: median and 95th percentile."""
    for question in questions[:20]:
        ask(question)
    clock, cpu = [], []
    for question in questions:
        began, spent = time.perf_counter(), time.process_time()
        ask(question)
        clock.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - spent))
    return {
        "p50": float(np.median(clock)),
        "p95": float(np.percentile(clock, 95)),
        "cpu_p50": float(np.median(cpu)),
        "cpu_p95": float(np.percentile(cpu, 95)),
    }


def near(store: str, count: int, file: str | None) -> dict[str, Any]:
    """Add vectors as indexing does, then query as a search does: candidates of the store, compared in full."""
    vectors = np.load(file)[: count + QUESTIONS] if file else made_vectors(count + QUESTIONS, 1)
    vectors, questions = vectors[:-QUESTIONS], vectors[-QUESTIONS:]
    best = np.argsort(-(questions @ vectors.T), axis=1)[:, :NEAREST]
    if store == "exact":
        times = times_of(lambda q: np.argpartition(-(vectors @ q), 50)[:50], questions)
        return {"store": store, "count": len(vectors), **times, "recall": 1.0}
    from settle.documents.blocks import Chunk, Place
    from settle.retrieve.index.catalogue import DocumentChange, DocumentRecord
    from settle.retrieve.index.collection import create

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = folder
        with create("docs") as collection:
            made = {"embedder": {}, "chunker": {}, "store": {"name": store}, "identity": ""}
            collection.catalogue.settings.set("made", made | {"width": WIDTH, "table": "docs-1234"})
            kept, seconds = collection.vectors.store, 0.0
            for first in range(0, len(vectors), BATCH):
                some = vectors[first : first + BATCH]
                ids = collection.catalogue.ids.reserve(len(some))
                chunks = [Chunk(f"number {id}", (), Place(), 2) for id in ids]
                began = time.monotonic()
                kept.add(np.array(ids), some)
                seconds += time.monotonic() - began
                changes = [DocumentChange(DocumentRecord(f"/{first}", 1, 1, b""), chunks, ids)]
                collection.catalogue.commit(changes, dict(zip(ids, some, strict=True)))
            began = time.monotonic()
            kept.compact()
            seconds += time.monotonic() - began
            found = [{id - 1 for id in list(collection.vectors.nearest(q, 50)())[:NEAREST]} for q in questions]
            recall = float(np.mean([len(f & set(b.tolist())) / NEAREST for f, b in zip(found, best, strict=True)]))
            times = times_of(lambda q: collection.vectors.nearest(q, 50)(), questions)
            bytes_each = size_of(collection.folder / store) / len(vectors)
    added = len(vectors) / seconds
    return {"store": store, "count": len(vectors), "added": added, **times, "recall": recall, "bytes": bytes_each}


def rounds(store: str, passages: int) -> dict[str, Any]:
    """Compare a collection whose documents are all removed and added twenty times with one made at once."""
    from settle.base.event_log import Events
    from settle.base.registry import part
    from settle.retrieve.index.chunkers.structure import Structure
    from settle.retrieve.index.collection import IndexParts, create
    from settle.retrieve.index.update_index import update

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = str(Path(folder) / "home")
        docs, away = Path(folder) / "docs", Path(folder) / "away"
        docs.mkdir()
        random = np.random.default_rng(0)
        vocabulary = [f"word{number}" for number in range(20_000)]
        for number in range(passages // 50):
            texts = (" ".join(vocabulary[i] for i in random.zipf(1.3, 100) % 20_000) for _ in range(50))
            (docs / f"{number}.md").write_text(
                "".join(f"# {s} of {number}\n\n{text}\n\n" for s, text in enumerate(texts))
            )
        (docs / "stays.md").write_text("This one stays, so that the folder is never empty.")
        parts = (
            part("retrieve/index/embedders", "hashed")(width=WIDTH),
            part("retrieve/index/stores", store)(),
            Structure(),
        )
        sizes, seconds = [], []

        def brought_up_to_date() -> Any:
            began = time.monotonic()
            with create("docs") as collection:
                collection.decide(IndexParts(*parts))
                collection.follow([docs])
                report = update(collection, Events())
            seconds.append(time.monotonic() - began)
            sizes.append(size_of(collection.folder))
            return report

        report = brought_up_to_date()
        for _ in range(ROUNDS):
            away.mkdir()
            for path in docs.glob("[0-9]*.md"):
                path.rename(away / path.name)
            brought_up_to_date()
            for path in away.iterdir():
                path.rename(docs / path.name)
            away.rmdir()
            report = brought_up_to_date()
        return {
            "store": store,
            "passages": report.passages,
            "fresh": sizes[0],
            "after": sizes[-1],
            "most": max(sizes),
            "ratio": sizes[-1] / sizes[0],
            "first_seconds": seconds[0],
            "last_seconds": seconds[-1],
        }


def memory(store: str, count: int) -> dict[str, Any]:
    """Vectors added, a thousandth of them asked, all that were there removed."""
    with tempfile.TemporaryDirectory() as folder:
        kept, began = opened(store, Path(folder)), time.monotonic()
        at = []
        for first in range(0, count, BATCH):
            kept.add(np.arange(first, min(first + BATCH, count)), made_vectors(min(BATCH, count - first), first))
            if first % (BATCH * 20) == 0:
                at.append(peak())
        kept.compact()
        for question in made_vectors(count // 1000, 7):
            kept.near(question, 50)
        kept.close()
        seconds = time.monotonic() - began
    return {
        "store": store,
        "count": count,
        "first": at[0],
        "half": at[len(at) // 2],
        "peak": peak(),
        "seconds": seconds,
    }


def catalogue(passages: int) -> dict[str, Any]:
    """Python's own library as passages of 130 words, committed 512 at a time."""
    import sysconfig

    from settle.documents.blocks import Chunk, Place
    from settle.retrieve.index.catalogue import Catalogue, DocumentChange, DocumentRecord

    def texts() -> Iterator[str]:
        turn = 0
        while True:
            for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
                words = path.read_text(errors="replace").split()
                yield from (f"{turn} " + " ".join(words[i : i + 130]) for i in range(0, len(words), 130))
            turn += 1

    source, seconds, spent = texts(), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder, Catalogue(Path(folder) / "catalogue.sqlite") as kept:
        for first in range(0, passages, BATCH):
            chunks = [Chunk(next(source), ("Head", "Section"), Place(line=i), 150) for i in range(BATCH)]
            began, cpu = time.monotonic(), time.process_time()
            ids = kept.ids.reserve(BATCH)
            changes = [
                DocumentChange(DocumentRecord(f"/{first}/{i}", 1, 1, b"x"), chunks[i : i + 16], ids[i : i + 16])
                for i in range(0, BATCH, 16)
            ]
            kept.commit(changes)
            seconds, spent = seconds + time.monotonic() - began, spent + time.process_time() - cpu
        began = time.perf_counter()
        for _ in range(1000):
            kept.counts()
        count = (time.perf_counter() - began) / 1000
        size = size_of(Path(folder)) / passages
    return {
        "passages": passages,
        "per_second": passages / seconds,
        "per_cpu_second": passages / spent,
        "count_microseconds": 1e6 * count,
        "bytes": size,
        "peak": peak(),
    }


def apart(*arguments: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--one"], stdout=subprocess.PIPE, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def one(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the measurement of one store and one count, in this process."""
    store, count = asked.stores[0], asked.counts[0]
    if asked.what == "near":
        return near(store, count, asked.vectors)
    if asked.what == "memory":
        return memory(store, count)
    if asked.what == "catalogue":
        return catalogue(asked.passages)
    with tempfile.TemporaryDirectory() as folder:
        join_embedder(Path(folder) / "parts")
        return rounds(store, asked.passages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("near", "rounds", "memory", "catalogue"))
    parser.add_argument("--stores", nargs="*", default=list(STORES))
    parser.add_argument("--counts", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--vectors", help="real ones instead: float32 (number, 384) of length 1, as numpy saves them")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked)))
        return 0
    counts = asked.counts if asked.what in ("near", "memory") else asked.counts[:1]
    stores = ["exact", *asked.stores] if asked.what == "near" else asked.stores
    for count in counts:
        for store in stores if asked.what != "catalogue" else stores[:1]:
            given = [asked.what, "--stores", store, "--counts", str(count), "--passages", str(asked.passages)]
            told = apart(*given, *(["--vectors", asked.vectors] if asked.vectors else []))
            print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in told.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
