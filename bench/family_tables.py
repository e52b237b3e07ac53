"""bench/results/families.toml and families.md, and parts of docs/families.md: which models can be tuned, and how far.

    python bench/family_tables.py     # writes them, then bench/results/README.md

tests/library/test_families.py compares them with the catalogue and the families that are known. The row of lines is
counted anew only here, so that a changed line in a family's file fails no test.
"""

import datetime
import runpy
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import tomli_w

from settle.library.families import COLUMNS, family_counts, tunable_shares

ROOT = Path(__file__).parents[1]
ROWS, TABLES = (ROOT / "bench/results" / name for name in ("families.toml", "families.md"))
PAGE = ROOT / "docs/families.md"
START, END = "<!--made:{}-->\n", "<!--end-->"
ABILITIES = ROOT / "tests/abilities/table.toml"  # made by the tests that prove it
WORKS = "works"
BARS = {"up to 5 B, of 2026": 0.85, "up to 5 B": 0.75}
COMMAND = "settle models --families"
ARCHITECTURES = ROOT / "settle/model/architectures"
MOST_LINES = 120  # of a family's file, in the median
NOT_DERIVED = ("families-unseen", "families-lines", "families-forecast")  # rows that are kept as they are measured
HEAD = """# Families

Made by `python bench/family_tables.py`; see [families](../../docs/families.md).

## The catalogue's families

A family counts with all its models, wherever they are published; *can be tuned* counts those whose text model's family
is known, without latent attention, and without experts where that family has none.

"""


def rows(date: str) -> list[dict[str, object]]:
    """Return the rows of the shares that have a bar."""
    found: list[dict[str, object]] = []
    for name, bar in BARS.items():
        share = tunable_shares()[name]
        others = ", ".join(f"{family} {count}" for family, count in share.missing[:4])
        found.append(
            {
                "id": "families-2026" if "2026" in name else "families-small",
                "claim": f"Most models of the catalogue ({name}) can be tuned.",
                "figure": f"{share}; most of the others: {others}",
                "bar": f"{100 * bar:.0f} %",
                "met": share.tunable >= bar * share.models,
                "judged_on": "the catalogue",
                "command": COMMAND,
                "date": date,
            }
        )
    return found


def lines_row(date: str) -> dict[str, object]:
    """Return the row of how many lines a family takes: a file of its own, or a section of plain.toml."""
    files = sorted(path for path in ARCHITECTURES.glob("*.py") if not path.name.startswith("_"))
    counts = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    sections = (ARCHITECTURES / "plain.toml").read_text(encoding="utf-8").split("\n[")[1:]
    plain = [len(section.strip().splitlines()) for section in sections]
    shared = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ARCHITECTURES.glob("_*.py"))
    middle, longest = statistics.median(counts.values()), max(counts, key=lambda name: counts[name])
    return {
        "id": "families-lines",
        "claim": "A family is one short file.",
        "figure": f"median {middle:g} lines, largest {counts[longest]} ({longest}), of {len(counts)} files; "
        f"{len(plain)} more families are {min(plain)} to {max(plain)} lines of plain.toml; shared by all: {shared}",
        "bar": f"median at most {MOST_LINES}",
        "met": middle <= MOST_LINES,
        "judged_on": "every line of settle/model/architectures",
        "command": "python bench/family_tables.py",
        "date": date,
    }


def sentence() -> str:
    """Return what docs/families.md says of the shares."""
    new, small, every = tunable_shares().values()
    return (
        f"Of the catalogue's models up to 5 B parameters that were released in 2026, {new} can be tuned;\n"
        f"of those of all dates {small}, and of all sizes {every}. `settle models --families` lists them.\n"
    )


def abilities() -> dict[str, dict[str, str]]:
    """Return what works for each family, or why not, by its abilities."""
    table: dict[str, dict[str, str]] = tomllib.loads(ABILITIES.read_text(encoding="utf-8"))
    return table


def always() -> str:
    """Return what docs/families.md says of abilities: those that every family has, and where others are refused."""
    table = abilities()
    names = next(iter(table.values()))
    lacking = {name: [family for family, cells in table.items() if cells[name] != WORKS] for name in names}
    every = ", ".join(name for name, families in lacking.items() if not families)
    others = ", ".join(f"{name} in {len(table) - len(f)} of {len(table)}" for name, f in lacking.items() if f)
    return f"{every} work in all families; {others}.\n"


def marks() -> str:
    """Return the table of abilities: ✓ where one works, – where it is refused."""
    table = abilities()
    names = next(iter(table.values()))
    body = [[family, *("✓" if cells[name] == WORKS else "–" for name in names)] for family, cells in table.items()]
    return markdown(["family", *names], body)


def refusals() -> str:
    """Return the reasons of what is refused, with the families of each."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for family, cells in abilities().items():
        for ability, said in cells.items():
            if said != WORKS:
                by_reason.setdefault((ability, said.partition(": ")[2]), []).append(family)
    return markdown(["ability", "families", "reason"], [[a, ", ".join(f), why] for (a, why), f in by_reason.items()])


def tables() -> str:
    """Return the page of tables."""
    cells = [cell for cells in abilities().values() for cell in cells.values()]
    text = f"{cells.count(WORKS)} of {len(cells)} abilities work; these are refused, with the reason that is shown:"
    return HEAD + markdown(COLUMNS, family_counts()) + f"\n## Abilities\n\n{marks()}\n{text}\n\n" + refusals()


def markdown(columns: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["-"] * len(columns), *body]
    return "".join(f"|{'|'.join(map(str, line))}|\n" for line in lines)


def made(counted: Sequence[dict[str, object]] = ()) -> dict[Path, str]:
    """Return what is made, by file; an unchanged row keeps its date. counted: rows that are measured anew."""
    known = {row["id"]: row for row in tomllib.loads(ROWS.read_text(encoding="utf-8"))["row"]} if ROWS.exists() else {}
    body = rows(datetime.date.today().isoformat())
    by_name = known | {str(row["id"]): row for row in counted}
    body += [by_name[name] for name in NOT_DERIVED if name in by_name]
    body = [known[row["id"]] if known.get(row["id"], {}) | {"date": ""} == row | {"date": ""} else row for row in body]
    page = PAGE.read_text(encoding="utf-8")
    for name, text in (("shares", sentence()), ("abilities", always())):
        start = START.format(name)
        before, _, rest = page.partition(start)
        page = f"{before}{start}{text}{END}{rest.partition(END)[2]}"
    return {ROWS: "\n".join(tomli_w.dumps({"row": [row]}) for row in body), TABLES: tables(), PAGE: page}


if __name__ == "__main__":
    for path, text in made([lines_row(datetime.date.today().isoformat())]).items():
        path.write_text(text, encoding="utf-8")
    runpy.run_path(str(Path(__file__).with_name("results_page.py")), run_name="__main__")
