"""Reading and cutting documents: megabytes a second of the processor's time, by kind; and a file of one endless line.

    python bench/reading.py FOLDER … [--files 200] [--endless 500]

Files are read in the child process that `settle index` reads them in, the same number of each kind, the largest left
out; then their blocks are cut by each chunker while counting tokens costs nothing, so that only its own work is seen.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from settle.base.registry import part, part_names
from settle.documents.blocks import Block
from settle.documents.reader_pool import read_all
from settle.documents.walk import FoundFile, Walk

LARGEST = 1 << 20  # bytes
LETTERS = 4  # of a token, when counting is free
MOST = 254  # tokens that the embedder reads


def free(texts: Sequence[str]) -> list[int]:
    return [len(text) // LETTERS for text in texts]


def child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(found: Sequence[FoundFile]) -> tuple[list[list[Block]], float, int]:
    """(blocks of each document, seconds of the child's processor, files without text)."""
    before = child_seconds()
    reads = list(read_all((Path(f.path), f.reader) for f in found))
    return [r.blocks for r in reads], child_seconds() - before, sum(bool(r.error) for r in reads)


def endless(megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "endless.txt")
        with path.open("wb") as file:
            for _ in range(megabytes):
                file.write(b"words " * (1_000_000 // 6))
        began = time.perf_counter()
        (found,) = read_all([(path, "text")])
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
        print(f"one line of {megabytes} MB: {found.error!r} after {seconds:.1f} s, peak memory {peak:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--files", type=int, default=200, help="of each kind")
    parser.add_argument("--endless", type=int, default=0, help="megabytes of a line to try as well")
    asked = parser.parse_args()
    kinds: dict[str, list[FoundFile]] = defaultdict(list)
    for found in Walk().files(asked.folders):
        if found.size <= LARGEST and len(kinds[found.reader]) < asked.files:
            kinds[found.reader].append(found)
    documents: list[list[Block]] = []
    print("| read | files | MB | of text | MB/s of files | of text |\n|---|--:|--:|--:|--:|--:|")
    for kind, some in sorted(kinds.items()):
        blocks, seconds, failed = read(some)
        size = sum(f.size for f in some) / 1e6
        text = sum(len(b.text) for of in blocks for b in of) / 1e6
        note = f" ({failed} not read)" if failed else ""
        print(f"| {kind} | {len(some)}{note} | {size:.1f} | {text:.1f} | {size / seconds:.2f} | {text / seconds:.2f} |")
        documents += blocks
        sys.stdout.flush()
    text = sum(len(b.text) for of in documents for b in of) / 1e6
    print("\n| cut | passages | MB/s of text |\n|---|--:|--:|")
    for name in part_names("retrieve/index/chunkers"):
        chunker = part("retrieve/index/chunkers", name)()
        began = time.process_time()
        passages = sum(1 for of in documents for _ in chunker.cut(of, free, MOST))  # type: ignore[attr-defined]
        print(f"| {name} | {passages:,} | {text / (time.process_time() - began):.1f} |")
    if asked.endless:
        endless(asked.endless)


if __name__ == "__main__":
    main()
