"""bench/results/families.toml and families.md, and a sentence in docs/families.md: which models can be tuned.

    python bench/family_tables.py     # writes them, then bench/results/README.md

tests/library/test_families.py compares them with the catalogue and the families that are known.
"""

import datetime
import runpy
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import tomli_w

from settle.library.families import COLUMNS, family_counts, tunable_shares

ROOT = Path(__file__).parents[1]
ROWS, TABLES = (ROOT / "bench/results" / name for name in ("families.toml", "families.md"))
PAGE = ROOT / "docs/families.md"
START, END = "<!--made:shares-->\n", "<!--end-->"
BARS = {"up to 5 B, of 2026": 0.85, "up to 5 B": 0.75}
COMMAND = "settle models --families"
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


def sentence() -> str:
    """Return what docs/families.md says of the shares."""
    new, small, every = tunable_shares().values()
    return (
        f"Of the catalogue's models up to 5 B parameters that were released in 2026, {new} can be tuned;\n"
        f"of those of all dates {small}, and of all sizes {every}. `settle models --families` lists them.\n"
    )


def tables() -> str:
    """Return the page of tables."""
    return HEAD + markdown(COLUMNS, family_counts())


def markdown(columns: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["-"] * len(columns), *body]
    return "".join(f"|{'|'.join(map(str, line))}|\n" for line in lines)


def made() -> dict[Path, str]:
    """Return what is made, by file; an unchanged row keeps its date."""
    known = {row["id"]: row for row in tomllib.loads(ROWS.read_text(encoding="utf-8"))["row"]} if ROWS.exists() else {}
    body = rows(datetime.date.today().isoformat())
    body = [known[row["id"]] if known.get(row["id"], {}) | {"date": ""} == row | {"date": ""} else row for row in body]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    page = f"{before}{START}{sentence()}{END}{rest.partition(END)[2]}"
    return {ROWS: "\n".join(tomli_w.dumps({"row": [row]}) for row in body), TABLES: tables(), PAGE: page}


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
    runpy.run_path(str(Path(__file__).with_name("results_page.py")), run_name="__main__")
