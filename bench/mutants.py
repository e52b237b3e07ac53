"""Do the tests notice when a line is wrong? Faults are put in, one at a time, and the tests nearest to each are run.

    python bench/mutants.py [--room train --room plan] [--count 400] [--seed 1]   faults drawn by chance
    python bench/mutants.py --changed main     of the files changed since a commit
    python bench/mutants.py --named [--room train]   those of bench/mutation/named.toml that are not recorded as caught,
                                               --again the others too; with --count drawn ones as well
    python bench/mutants.py --missed           those recorded as missed, once more
    python bench/mutants.py --report           the table of what is recorded

Nearest are the tests that call the function, cheapest first, at most 40 and `--seconds` of CPU. Which call it is noted
once by running them (`--calls FILE`, made when it is not there: as long as the tests themselves take; of some rooms
only with `CALLS=FILE python -m pytest -p mutation.calls tests/...` and this folder on PYTHONPATH). Of these the ones
come first whose file imports the function's module, then other tests of such files, until the seconds are spent.
Faults are drawn evenly from all places of a room, at most three of a function; one that no test reaches counts as
missed. What came out is kept in bench/results/mutants.jsonl, a line a fault; a fault that changes nothing that can be
seen is named in bench/mutation/equivalent.toml with the reason, and left out of the share.

`tests/test_mutants.py` tries a few of those recorded as caught again, of changed files first, each by the test that
caught it, in a process of its own. All else needs fork, so Linux or macOS.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mutation.by_name import files_that_name, tests_that_name
from mutation.faults import NOT_ENDED, Fault, compiles, faults_of

if TYPE_CHECKING:
    from mutation.trials import Trials

ROOT = Path(__file__).parents[1]
ROOMS = (  # folders and files; a file belongs to the last of these that holds it
    *("train", "train/objectives/decision.py", "train/world", "plan", "plan/fit", "plan/cluster", "plan/cost"),
    *(
        "evaluate",
        "evaluate/compare",
        "evaluate/calibration.py",
        "evaluate/decisions.py",
        "evaluate/blind",
        "experiment",
        "doctor",
    ),
    *("retrieve", "retrieve/answer/answer_judge.py", "shrink", "jobs", "jobs/choose"),
    *("data/decisions", "machine", "base/statistics.py"),
)
PICTURES = (  # what is drawn is looked at, not tested
    *("report/curves.py", "check/check_report.py", "shrink/pareto.py", "fit/report.py", "report/figures.py"),
)
RESULTS, EQUIVALENT, NAMED = (
    "bench/results/mutants.jsonl",
    "bench/mutation/equivalent.toml",
    "bench/mutation/named.toml",
)
A_FUNCTION, TESTS = 3, 40
CHEAP = 0.5  # seconds of CPU, of a test that the suite runs again
NEAR = [
    *(f"tests/{room}" for room in ("train", "plan", "evaluate", "retrieve", "shrink", "jobs", "base", "commands")),
    *("tests/data", "tests/machine", "tests/model", "tests/doctor", "tests/test_api.py"),
]


def main() -> None:
    options = parsed()
    if options.report:
        print("\n".join(report(recorded(ROOT))))
    elif options.inside:
        inside(options)
    else:
        sys.exit(in_a_copy(sys.argv[1:], options))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", action="append", help="a room or file below settle/ to draw from; all without")
    parser.add_argument("--count", type=int, help="faults to draw, 400 without")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--changed", metavar="COMMIT", help="draw from files that differ from this commit")
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--missed", action="store_true")
    parser.add_argument("--seconds", type=float, default=40.0, help="of CPU for the tests of one fault, at most")
    parser.add_argument("--calls", type=Path, default=Path(tempfile.gettempdir()) / "settle-calls.jsonl")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_copy(arguments: list[str], options: argparse.Namespace) -> int:
    """Run this program again in a copy of the tree, whose files may be broken."""
    drawn = draw(options)
    if not drawn:
        print("nothing to try")
        return 0
    if not options.calls.exists():
        note_calls(options.calls)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "tree"
        for room in ("settle", "tests", "bench", "recipes", "docs"):
            if (ROOT / room).exists():
                shutil.copytree(ROOT / room, copy / room)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if any((copy / f.path).read_bytes()[f.start : f.end] != f.old.encode() for f in drawn):
            sys.exit("the tree changed while it was copied: run it again")
        (copy / "faults.json").write_text(json.dumps([fault.__dict__ for fault in drawn]))
        command = [sys.executable, str(copy / "bench/mutants.py"), *arguments, "--calls", str(options.calls.resolve())]
        paths = os.pathsep.join([str(copy), str(copy / "bench")])
        env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run([*command, "--inside", str(ROOT)], cwd=copy, env=env).returncode


def note_calls(path: Path) -> None:
    """Run the tests of all rooms once, each noted with the functions it calls."""
    env = os.environ | {"CALLS": str(path), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mutation.calls", "-p", "no:cacheprovider", *NEAR]
    subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)


def draw(options: argparse.Namespace) -> list[Fault]:
    """Return the faults to try, in a fixed order."""
    paths = paths_of(options.room or ROOMS)
    drawn = [fault for fault in named(ROOT) if not options.room or fault.path in paths] if options.named else []
    if options.named and options.count is None:
        return drawn
    chance = random.Random(options.seed)
    if options.missed:
        left = {record["key"] for record in recorded(ROOT) if not record["by"]} - equivalent(ROOT)
        return [fault for path in paths for fault in faults_of(ROOT, path) if fault.key in left]
    if options.changed:
        paths = sorted(set(paths) & changed(options.changed))
    by_room = collections.defaultdict(list)
    for path in paths:
        by_room[room_of(path)] += faults_of(ROOT, path)
    count, others = options.count or 400, list[Fault]()
    for faults in by_room.values():
        chance.shuffle(faults)
        taken: collections.Counter[str] = collections.Counter()
        few = []
        for fault in faults:
            taken[fault.path + fault.function] += 1
            if taken[fault.path + fault.function] <= A_FUNCTION:
                few.append(fault)
        others += [fault for fault in few[: count // len(by_room)] if compiles(ROOT, fault)]
    chance.shuffle(others)
    return drawn + others


def room_of(path: str) -> str:
    """Return the room of a file: of those in ROOMS that hold it, the one with the fewest files."""
    inside = path.removeprefix("settle/")
    return next((room for room in ROOMS[::-1] if (inside + "/").startswith(room + "/")), inside.split("/")[0])


def paths_of(rooms: Sequence[str]) -> list[str]:
    """Return the files of rooms, except pictures."""
    places = [ROOT / "settle" / room for room in rooms]
    files = sorted({path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))})
    return [p for path in files if not (p := path.relative_to(ROOT).as_posix()).endswith(PICTURES)]


def caught_before(most: int, seed: int = 1) -> list[tuple[Fault, str]]:
    """Return recorded faults whose line is unchanged, each with the cheap test that catches it by itself.

    Faults of files that changed since the previous commit come first.
    """
    records = [r for r in recorded(ROOT) if r["by"] and r["seconds"] < CHEAP and NOT_ENDED not in r["by"]]
    records = [r for r in records if r.get("alone")]  # its test was seen to catch it by itself
    random.Random(seed).shuffle(records)
    of_changes = changed("HEAD~1")
    records.sort(key=lambda record: record["key"].split()[0] not in of_changes)
    by_name = {fault.key: fault for fault in named(ROOT)}
    chosen: list[tuple[Fault, str]] = []
    for record in records:
        path = record["key"].split()[0]
        if record["key"] not in by_name and (ROOT / path).exists():
            by_name |= {fault.key: fault for fault in faults_of(ROOT, path)}
        test_file = ROOT / record["by"].split("::")[0]
        if len(chosen) < most and record["key"] in by_name and test_file.exists():
            chosen.append((by_name[record["key"]], record["by"]))
        if len(chosen) == most:
            break
    return chosen


def changed(commit: str) -> set[str]:
    """Files that differ from a commit, with what is not committed; none outside a repository."""
    done = subprocess.run(["git", "diff", "--name-only", commit], cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.split())


def named(root: Path) -> list[Fault]:
    """Return the faults of named.toml. One whose text is gone must be written anew, or has lost its object."""
    faults = []
    for entry in tomllib.loads((root / NAMED).read_text(encoding="utf-8"))["fault"]:
        path = root / entry["path"]
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        if source.count(entry["old"]) != 1:
            print(f"named fault {entry['name']!r}: its text is in {entry['path']} {source.count(entry['old'])} times")
            continue
        start = len(source[: source.index(entry["old"])].encode())
        end = start + len(entry["old"].encode())
        line = source.count("\n", 0, source.index(entry["old"])) + 1
        faults.append(
            Fault(entry["path"], entry["function"], line, start, end, entry["old"], entry["new"], entry["name"])
        )
    return faults


def recorded(root: Path) -> list[dict]:
    """Return the last record of each fault; `at_first`: whether its first one says that it was caught."""
    path = root / RESULTS
    records: dict[str, dict] = {}
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        first = records.get(record["key"], record)
        records[record["key"]] = record | {"at_first": first.get("at_first", bool(first["by"]))}
    return list(records.values())


def equivalent(root: Path) -> set[str]:
    """Keys of faults that change nothing that can be seen."""
    path = root / EQUIVALENT
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["fault"] if path.exists() else []
    return {entry["key"] for entry in entries}


def inside(options: argparse.Namespace) -> None:
    """In the copy: collect the tests, try each fault, and record what came out where the person's tree is."""
    from mutation.trials import run_trials

    faults = [Fault(**entry) for entry in json.loads(Path("faults.json").read_text())]
    records = [] if options.missed else recorded(options.inside)
    done = {record["key"] for record in records}
    if options.named:
        caught = set() if options.again else {record["key"] for record in records if record["by"]}
        done -= {fault.key for fault in named(Path.cwd())} - caught
    calls, seconds = read_calls(options.calls)
    faults = [fault for fault in faults if fault.key not in done]
    nearest = {fault.key: nearest_tests(fault, calls, seconds, options.seconds) for fault in faults}
    by_name = {fault.key: files_that_name(Path.cwd(), fault) for fault in faults}
    wanted = sorted({test.split("::")[0] for tests in nearest.values() for test in tests}.union(*by_name.values()))

    def work(trials: "Trials") -> None:
        if any("tests.trained" in Path(path).read_text(encoding="utf-8") for path in wanted):
            from tests.trained import trained

            trained()  # the model that most fixtures need, once
        for number, fault in enumerate(faults, 1):
            own = tests_that_name(fault, by_name[fault.key], trials.items)
            tests = in_order(nearest[fault.key], own, by_name[fault.key])
            outcome = trials.outcome(fault, tests, options.seconds)
            verdict = f"caught by {outcome.by}" if outcome.by else f"MISSED by {outcome.tests} tests"
            where = f"{number}/{len(faults)} {fault.path}:{fault.line} {fault.statement}"
            print(f"{where} | {fault.old} -> {fault.new}: {verdict}", flush=True, file=sys.stderr)
            cost = round(seconds.get(outcome.by.removesuffix(NOT_ENDED), 0.0), 2)
            record = {"key": fault.key, "by": outcome.by, "tests": outcome.tests, "seconds": cost}
            with open(options.inside / RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    run_trials(Path.cwd(), wanted, {fault.path for fault in faults}, work)


def read_calls(path: Path) -> tuple[dict[str, set[str]], dict[str, float]]:
    """Which tests call a function, and the seconds of CPU each test takes with its fixtures."""
    calls: dict[str, set[str]] = collections.defaultdict(set)
    seconds: dict[str, float] = collections.defaultdict(float)
    for line in path.read_text(encoding="utf-8").splitlines():
        test, _, cost, functions = json.loads(line)
        seconds[test] += cost
        for function in functions:
            calls[function].add(test)
    return calls, seconds


def nearest_tests(fault: Fault, calls: dict[str, set[str]], seconds: dict[str, float], most: float) -> list[str]:
    """Return tests that call the function: those of its room first among equals, cheapest first."""
    room = fault.path.split("/")[1]

    def price(test: str) -> tuple[float, str]:
        return (seconds[test] + 0.05) * (1 if test.startswith(f"tests/{room}/") else 3), test

    chosen, left = [], most
    for test in sorted(calls.get(f"{fault.path} {fault.function}", ()), key=price)[:TESTS]:
        if chosen and seconds[test] > left:
            break
        left -= seconds[test]
        chosen.append(test)
    return chosen


def in_order(calling: list[str], naming: list[str], files: list[str]) -> list[str]:
    """Return at most TESTS tests in the order to run them.

    First those that call the function and are in `files` that name it, then others that name it, then other callers,
    cheap or not.
    """
    own = set(files)
    near = [test for test in calling if test.split("::")[0] in own]
    return list(dict.fromkeys([*near, *naming, *calling]))[:TESTS]


def report(records: list[dict]) -> list[str]:
    """Return a table by room of the faults whose line is unchanged, and those that were missed."""
    same = equivalent(ROOT)
    present = {fault.key: (room_of(path), "all") for path in paths_of(ROOMS) for fault in faults_of(ROOT, path)}
    present |= {fault.key: ("named",) for fault in named(ROOT)}
    rooms: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for record in (record for record in records if record["key"] in present):
        what = "caught" if record["by"] else "changes nothing" if record["key"] in same else "missed"
        for row in present[record["key"]]:
            rooms[row].update([what, "at first"] if record["at_first"] else [what])
    columns = ("room", "faults", "change nothing", "caught at first", "caught", "missed", "share caught")
    lines = ["| " + " | ".join(columns) + " |", "|---|--:|--:|--:|--:|--:|--:|"]
    for room, count in sorted(rooms.items(), key=lambda pair: (pair[0] in ("all", "named"), pair[0])):
        caught, missed, nothing = count["caught"], count["missed"], count["changes nothing"]
        share = caught / max(1, caught + missed)
        cells = [room, caught + missed + nothing, nothing, count["at first"], caught, missed, f"{share:.0%}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    left = [record["key"] for record in records if not record["by"] and record["key"] not in same]
    return [*lines, "", *(f"missed: {key}" for key in left if key in present)]


if __name__ == "__main__":
    main()
