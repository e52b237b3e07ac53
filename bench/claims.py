"""The check of claims against the passages that they cite: what it lets through, and what it wrongly marks.

    python bench/claims.py                 # the half that the check was made with
    python bench/claims.py --half judge    # the half that nobody looked at

bench/claims.txt holds the pairs. The passages of a half are indexed with the minilm embedder; a claim is checked
against its own passage, which it cites. --text looks at the words alone, without the score of meaning.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import settle
from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.citation_check import Checker, differences
from settle.retrieve.index.collection import Collection, delete
from settle.retrieve.index.words import sentences
from settle.retrieve.search import search

NAME = "claims-of-the-bench"


class Pair(NamedTuple):
    half: str
    domain: str
    passage: str
    claim: str
    kind: str
    is_true: bool


def pairs() -> Iterator[Pair]:
    half = domain = passage = ""
    for line in (Path(__file__).parent / "claims.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            half, domain = line[2:].split()
        elif line[:2] in ("+ ", "- "):
            kind, _, claim = line[2:].partition(": ")
            yield Pair(half, domain, passage, claim, kind, line[0] == "+")
        elif line and not line.startswith("#"):
            passage = line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("dev", "judge"), default="dev")
    parser.add_argument("--text", action="store_true", help="the words alone")
    asked = parser.parse_args()
    chosen = [pair for pair in pairs() if pair.half == asked.half]
    found = [(pair, differences(pair.claim, list(sentences(pair.passage)))) for pair in chosen] if asked.text else []
    report([(pair, not differs, str(differs)) for pair, differs in found] or list(checked(chosen)))


def checked(chosen: list[Pair]) -> Iterator[tuple[Pair, bool, str]]:
    """Whether `settle ask` would call each claim supported."""
    with tempfile.TemporaryDirectory() as folder:
        for pair in chosen:
            (Path(folder) / f"{pair.domain}.txt").write_text(pair.passage + "\n", encoding="utf-8")
        settle.index(folder, name=NAME).close()
        with Collection(NAME) as collection:
            for pair in chosen:
                hits = [h for h in search(collection, pair.passage, 10) if pair.domain in h.occurrences[0].path]
                source = Source(1, (Piece(hits[0].passage, hits[0].occurrences[0]),))
                best = Checker(collection, [source]).best(pair.claim, 1)
                yield pair, best.enough, f"{best.score:.2f} {best.differs}"
        delete(NAME)


def report(found: list[tuple[Pair, bool, str]]) -> None:
    kinds: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    for pair, accepted, why in found:
        kinds[pair.is_true, pair.kind].append(accepted)
        if accepted != pair.is_true:
            print(f"{'wrongly accepted' if accepted else 'wrongly marked'}: {pair.claim}  {why}")
    for is_true in (True, False):
        rows = [accepted for (truth, _), some in kinds.items() if truth == is_true for accepted in some]
        wrong = sum(accepted != is_true for accepted in rows)
        print(f"{'false reject' if is_true else 'false accept'}: {wrong} of {len(rows)}")
        for (truth, kind), some in kinds.items():
            if truth == is_true:
                print(f"    {kind:20} {sum(accepted != is_true for accepted in some)} of {len(some)}")


if __name__ == "__main__":
    main()
