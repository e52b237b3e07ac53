"""bench/results/README.md: every claim with its figure and bar, from the rows of data beside it.

    python bench/results_page.py           # writes the page
    python bench/results_page.py --check   # exit status 1 where the page is not what the rows say

A row stands in any *.toml of that folder: claim, figure, bar, met, judged_on, command, date, and peer where one ran
beside settle.
"""

import argparse
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent / "results"
PAGE = FOLDER / "README.md"
HEAD = """# Results

Made by `python bench/results_page.py` from the rows beside it; a missed bar is a row like any other. Figures of earlier
versions are in the history of these files.
"""


class Row(BaseModel):
    """One claim. met: whether the figure reaches the bar."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str = Field(min_length=1)
    figure: str = Field(min_length=1)
    bar: str = Field(min_length=1)
    met: bool
    judged_on: str = Field(min_length=1)
    command: str = Field(min_length=1)
    date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    peer: str = ""


def page() -> str:
    """The page as the rows say."""
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.toml")):
        rows = [Row.model_validate(row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["row"]]
        met = sum(row.met for row in rows)
        parts.append(f"\n## {path.stem.capitalize()}: {met} of {len(rows)} bars met\n")
        parts.append("| | claim | figure | bar | judged on | command |\n|---|---|---|---|---|---|\n")
        parts += [_line(row) for row in rows]
    return "".join(parts)


def _line(row: Row) -> str:
    figure = row.figure + (f" (peer: {row.peer})" if row.peer else "")
    cells = ["met" if row.met else "**missed**", row.claim, figure, row.bar, row.judged_on]
    command = row.command.replace("|", "\\|")
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} | `{command}` {row.date} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    made = page()
    if parser.parse_args().check:
        return int(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
