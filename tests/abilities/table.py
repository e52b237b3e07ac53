"""What was found of each family's abilities: `table.toml`, which tests hold the families to."""

import tomllib
from pathlib import Path

import tomli_w

FILE = Path(__file__).with_name("table.toml")
HEAD = "# Made by `python -m tests.abilities [FAMILY ...]`; `python bench/family_tables.py` shows it on the pages.\n\n"

Table = dict[str, dict[str, str]]  # family → ability → "works", or "refused: " and the reason


def read_table() -> Table:
    return tomllib.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def write_table(table: Table) -> None:
    FILE.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")
