"""Questions as people ask them, about documents that nothing in settle was tuned on: found, answered, refused.

    python bench/questions.py FOLDER                                    # makes the documents and measures the dev half
    python bench/questions.py FOLDER --split judgement --check 100      # and what `--check` says of the same collection

The questions are in `asked/`, written while reading the documents and before anything was scored, in the words that
people use, typing errors included. Half of them, by a hash of the question, are for development; the other half is
looked at only to report. `stars`: articles on astronomy (Markdown); `borg`: the web pages of a backup program;
`games`: a web page with tables and a long text. The documents come from Debian packages (`apt-get download`). Of
the other sets, `theatre notensatz engraving uprisings` are split likewise, since both halves were looked at; `chats`,
`recipes`, `oncall` and `harbour` were for judgement as a whole, until the evidence was fitted on the dev halves
of `oncall` and `harbour`; `exim`, `httpd`, `policy` and `retouching` are, four manuals of Debian packages (`--sets exim
httpd policy retouching --split both`). `off_topic` has questions that none of these speaks of; `--off-topic` asks them,
too.

A passage or an answer is right when it has one of the phrases noted with the question, however its white space is. Told
for each set, and for all questions together, by the weights that ship, and after `--check` by those that it stored:

    AUROC of the evidence; refused of the questions without an answer, and of those with one, and how many get
    "perhaps";
    right answers by quoting, of all questions with an answer, and were nothing refused; recall@1 and @5;
    changed: of twelve wordings of one question (`wordings.txt`), how many have another outcome than most of them;
    ms: processor time of a question without its quote, and of the search alone.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from judge_documents import documents_of
from retrieval import indexed
from sources import markdown, plain, unpacked

from settle.base.event_log import Events
from settle.base.statistics import wilson
from settle.evaluate.calibration import CalibrationReport
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.evidence import (
    DEPTH,
    PASSAGES,
    EvidenceWeights,
    features_of,
    retrieve,
    shipped,
    weights_for,
)
from settle.retrieve.check.check import CheckResult, check
from settle.retrieve.index.collection import Collection
from settle.retrieve.search import search

ASKED = Path(__file__).with_name("asked")
SPLITS = ("dev", "judgement")
DEEPEST = 5  # passages among which the right one is looked for
ARTICLES = (  # of the handbook: those on astronomy, not on the program
    "cequator horizon greatcircle meridian zenith epoch csphere hourangle equinox solarsys utime retrograde geocoords"
    " cpoles timezones precession flux luminosity ecliptic julianday parallax cosmicdist leapyear magnitude stars"
    " ellipticalgalaxies sidereal spiralgalaxies blackbody lightcurves darkmatter colorandtemp skycoords jmoons"
)
BORG = ("faq.html", "quickstart.html", "installation.html", "introduction.html", "support.html", "usage", "deployment")


@dataclass(frozen=True)
class Question:
    """phrases: of the answer, any of them; none where the documents do not answer."""

    text: str
    phrases: tuple[str, ...]
    split: str

    @property
    def is_answerable(self) -> bool:
        return bool(self.phrases)


def questions(name: str) -> Iterator[Question]:
    yield from questions_in(ASKED / f"{name}.txt")


def questions_in(path: Path) -> Iterator[Question]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line[:2] in ("+ ", "- "):
            text, _, noted = line[2:].partition(" => ")
            half = SPLITS[hashlib.sha256(text.encode()).digest()[0] % 2]
            yield Question(text, tuple(plain(p) for p in noted.split(" | ") if p), half)


def wordings() -> Iterator[tuple[str, str, list[str]]]:
    """(set, split, twelve wordings of one question)."""
    groups: list[tuple[str, list[str]]] = []
    for line in (ASKED / "wordings.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("* "):
            groups.append((line.split()[1], []))
        elif not line.startswith("#"):
            groups[-1][1].append(line)
    for number, (name, lines) in enumerate(groups):
        yield name, SPLITS[number % 2], lines


def make_documents(folder: Path) -> None:
    """Write `FOLDER/SET/documents` for each set that is not there."""
    if not (folder / "stars").is_dir():
        (root,) = unpacked(folder, ["kstars-data"])
        target = folder / "stars" / "documents"
        target.mkdir(parents=True)
        for name in ARTICLES.split():
            source = (root / f"usr/share/doc/HTML/en/kstars/{name}.docbook").read_text(encoding="utf-8")
            (target / f"{name}.md").write_text(markdown(source), encoding="utf-8")
    if not (folder / "borg").is_dir():
        (root,) = unpacked(folder, ["borgbackup-doc"])
        target = folder / "borg" / "documents"
        target.mkdir(parents=True)
        for name in BORG:
            source = root / "usr/share/doc/borgbackup/html" / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
    if not (folder / "games").is_dir():
        wesnoth, nethack = unpacked(folder, ["wesnoth-1.18-data", "nethack-common"])
        target = folder / "games" / "documents"
        target.mkdir(parents=True)
        shutil.copy(wesnoth / "usr/share/doc/wesnoth-1.18-data/manual.en.html", target / "wesnoth.html")
        guide = (nethack / "usr/share/doc/nethack-common/Guidebook.txt.gz").read_bytes()
        (target / "Guidebook.txt").write_bytes(gzip.decompress(guide))


Row = dict[str, Any]


def measured(collection: Collection, asked: Sequence[Question], quotes: bool = True) -> list[Row]:
    """quotes: whether answers are quoted, which takes longest; only questions with an answer are."""
    rows = []
    for question in asked:
        began = time.process_time()
        search(collection, question.text, DEPTH)
        searched = time.process_time()
        found = retrieve(collection, question.text, k=DEPTH)
        seconds = time.process_time() - searched
        retrieval, text = replace(found, hits=found.hits[:PASSAGES]), ""
        if quotes and question.is_answerable:
            sure = replace(retrieval, evidence=replace(retrieval.evidence, score=1.0))
            text = finish_answer(stream_answer(collection, None, sure)).text
        hits = [plain(hit.passage.embedded) for hit in found.hits[:DEEPEST]]
        ranks = [n for n, hit in enumerate(hits, 1) if any(phrase in hit for phrase in question.phrases)]
        features = features_of(collection, question.text, found.hits, readings=found.readings)
        rows.append(
            {
                "question": question.text,
                "answerable": question.is_answerable,
                "features": features.tolist(),
                "would_be_right": any(phrase in plain(text) for phrase in question.phrases),
                "rank": min(ranks, default=None),
                "logits": [reading.logit for reading in found.readings.values()],
                "text": text,
                "seconds": seconds,
                "search_seconds": searched - began,
            }
        )
    return rows


def judged(rows: Sequence[Row], weights: EvidenceWeights) -> list[Row]:
    """Return the rows with their score, and whether they are answered, perhaps or refused, by some weights."""
    found = []
    for row in rows:
        score = weights.score(np.array(row["features"]))
        kind = outcome(score, weights)
        right = row["would_be_right"] and kind != "refused"
        found.append({**row, "score": score, "kind": kind, "right": right})
    return found


def outcome(score: float, weights: EvidenceWeights) -> str:
    """answered, perhaps or refused."""
    if score < weights.threshold:
        return "refused"
    return "answered" if score >= max(weights.sure, weights.threshold) else "perhaps"


def reworded(collection: Collection, groups: Sequence[list[str]]) -> list[list[Row]]:
    """Each question of each group, measured."""
    return [measured(collection, [Question(text, (), "") for text in group], quotes=False) for group in groups]


def changed(groups: Sequence[list[Row]], weights: EvidenceWeights) -> list[bool]:
    """Of each wording, whether its outcome is another than that of most in its group."""
    other = []
    for group in groups:
        kinds = [row["kind"] for row in judged(group, weights)]
        most = Counter(kinds).most_common(1)[0][0]
        other += [kind != most for kind in kinds]
    return other


def auroc(there: Sequence[float], gone: Sequence[float]) -> float:
    a, b = np.array(there)[:, None], np.array(gone)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    there, gone = ([r for r in rows if r["answerable"] == kind] for kind in (True, False))
    return {
        "n": (len(there), len(gone)),
        "auroc": auroc([r["score"] for r in there], [r["score"] for r in gone]),
        "refused": [r["kind"] == "refused" for r in gone],
        "perhaps_gone": [r["kind"] == "perhaps" for r in gone],
        "false": [r["kind"] == "refused" for r in there],
        "perhaps": [r["kind"] == "perhaps" for r in there],
        "right": [r["right"] for r in there],
        "would": [r["would_be_right"] for r in there],
        "r1": [r["rank"] == 1 for r in there],
        "r5": [r["rank"] is not None for r in there],
        "ms": [1e3 * float(np.median([r[key] for r in rows])) for key in ("seconds", "search_seconds")],
    }


def table_row(name: str, of: dict[str, Any], other: list[bool]) -> str:
    def share(values: list[bool]) -> str:
        found = wilson(values)
        return f"{100 * found.value:.0f} ({100 * found.low:.0f}–{100 * found.high:.0f})"

    shares = [share(of[key]) for key in ("refused", "perhaps_gone", "false", "perhaps", "right", "would", "r1", "r5")]
    ms = "{:.0f}, {:.0f}".format(*of["ms"])
    cells = [name, f"{of['n'][0]} + {of['n'][1]}", f"{of['auroc']:.3f}", *shares, share(other) if other else "", ms]
    return f"| {' | '.join(cells)} |"


def said(result: CheckResult) -> str:
    """Return what `--check` says of its own questions."""
    figures = {
        "unanswerable refused": result.refused,
        "answerable refused": result.false_refusals,
        "recall@1": result.recall[1],
        "recall@5": result.recall[DEEPEST],
    }
    shown = (f"{name} {100 * f.value:.0f} ({100 * f.low:.0f}–{100 * f.high:.0f})" for name, f in figures.items())
    fitted = "fitted" if result.is_calibrated else "not fitted"
    return f"--check of {result.questions} questions, {fitted}: {', '.join(shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=("stars", "borg", "games"), metavar="SET")
    parser.add_argument("--split", default="dev", choices=(*SPLITS, "both"))
    parser.add_argument("--no-quotes", action="store_true", help="measure what is found and refused only")
    parser.add_argument("--off-topic", action="store_true", help="also the half of off_topic.txt that judges")
    parser.add_argument("--check", type=int, metavar="N", help="run --check with N questions, and tell what it said")
    parser.add_argument("--rows", type=Path, help="a file for every question and its answer, as lines of JSON")
    args = parser.parse_args()
    folder = args.folder.resolve()
    make_documents(folder)
    groups: dict[str, list[list[str]]] = defaultdict(list)
    for name, split, lines in wordings():
        if args.split in (split, "both"):
            groups[name].append(lines)
    everything: dict[str, list[Row]] = defaultdict(list)
    others: dict[str, list[bool]] = defaultdict(list)
    print(
        "| set | with + without an answer | AUROC | refused, none there | perhaps, none there | refused, there"
        " | perhaps, there | right by quoting | were nothing refused | recall@1 | recall@5 | changed | ms |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name in args.sets:
        with indexed(documents_of(name, folder)) as collection:
            asked = [question for question in questions(name) if args.split in (question.split, "both")]
            if args.off_topic:
                asked += [question for question in questions("off_topic") if question.split == "judgement"]
            rows, wordings_of = measured(collection, asked, not args.no_quotes), reworded(collection, groups[name])
            by = {"as shipped": shipped(any(row["logits"] for row in rows))}
            told = check(collection, Events(), args.check) if args.check else None
            if told:
                by["after --check"] = weights_for(collection.catalogue)
        for way, weights in by.items():
            everything[way] += (own := [{"set": name, "by": way, **row} for row in judged(rows, weights)])
            others[way] += (other := changed(wordings_of, weights))
            print(table_row(f"{name}, {way}", figures(own), other), flush=True)
        if told:
            print(f"{name}: {said(told)}", flush=True)
    for way, own in everything.items():
        print(table_row(f"all, {way}", figures(own), others[way]))
    for way, own in everything.items():
        scores = np.array([row["score"] for row in own])
        there = np.array([float(row["answerable"]) for row in own])
        calibrated = CalibrationReport.of(np.column_stack([1 - scores, scores]), np.column_stack([1 - there, there]))
        print("\n".join([f"the evidence, {way}, as a probability of an answer:", *calibrated.lines()]))
    if args.rows:
        kept = [row for own in everything.values() for row in own]
        args.rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


if __name__ == "__main__":
    main()
