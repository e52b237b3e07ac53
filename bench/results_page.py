"""bench/results/README.md: every claim with its figure and bar, from the rows of data in that folder.

    python bench/results_page.py           # writes the page
    python bench/results_page.py --check   # exit status 1 where the page is not what the rows say

Every *.toml of the folder holds rows of the class `Row`. A page of the documentation that quotes a figure names the row
in a comment behind it, `2 of 40<!--row:claims-->`; tests/test_docs.py checks that the row says so.
"""

import argparse
import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent / "results"
PAGE = FOLDER / "README.md"
NO_BAR = "none set"
HEAD = """# Results

Made by `python bench/results_page.py` from the rows in this folder. A missed bar is a row like any other. The file of a
section has each row's whole command, and its commit where that is known. Earlier figures are in the history of these
files.
"""


class Row(BaseModel):
    """One claim, and what was measured of it.

    Attributes:
        id: the name by which pages quote the row.
        interval: the 95 % interval of a single figure, which names it too.
        bar: what the figure has to reach, or "none set".
        judged_on: the data, and whether they were seen before.
        machine: the processor and its load.
        peer: the program that was compared, with its version.
        commit: the commit that recorded the figure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    claim: str = Field(min_length=1)
    figure: str = Field(min_length=1)
    interval: str = ""
    bar: str = Field(min_length=1)
    met: bool
    judged_on: str = Field(min_length=1)
    machine: str = ""
    command: str = Field(min_length=1)
    peer: str = ""
    commit: str = Field("", pattern=r"^([0-9a-f]{7,40})?$")
    date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")


def rows() -> dict[str, list[Row]]:
    """Return the rows of every file, by the file's stem."""
    files = {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8"))["row"] for path in sorted(FOLDER.glob("*.toml"))
    }
    return {stem: [Row.model_validate(row) for row in found] for stem, found in files.items()}


def page() -> str:
    """Return the page that the rows make."""
    parts = [HEAD]
    for stem, section in rows().items():
        barred = [row for row in section if row.bar != NO_BAR]
        met = sum(row.met for row in barred)
        parts.append(f"\n## [{stem.capitalize()}]({stem}.toml): {met} of {len(barred)} bars met\n\n")
        parts.append("||claim|figure|bar|judged on|measured by|\n|-|-|-|-|-|-|\n")
        parts += [_line(row) for row in section]
    return "".join(parts)


def _line(row: Row) -> str:
    met = "no bar" if row.bar == NO_BAR else "met" if row.met else "**missed**"
    figure = f"{row.figure}; peer: {row.peer}" if row.peer else row.figure
    judged_on = f"{row.judged_on}; {row.machine}" if row.machine else row.judged_on
    cells = [met, row.claim, figure, "–" if row.bar == NO_BAR else row.bar, judged_on, f"`{_script(row)}` {row.date}"]
    return f"|{'|'.join(cell.replace('|', '/') for cell in cells)}|\n"


def _script(row: Row) -> str:
    """Return the script, test or command that measures a row, without its settings: the last that its command names."""
    found = re.findall(r"bench/[\w/]+\.py|tests/[\w/.]+", row.command)
    return found[-1] if found else " ".join(row.command.split()[:2])


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
