"""Prove the abilities of families, and write what was found to `table.toml`.

python -m tests.abilities [FAMILY ...]    # what is missing when none is named; then python bench/family_tables.py
"""

import os
import sys
import tempfile

import torch

from settle.base.files import home
from settle.model.families import families
from tests.abilities.prove import ABILITIES, prove
from tests.abilities.subject import Subject, Text
from tests.abilities.table import read_table, write_table


def main(names: list[str]) -> None:
    """Prove every ability of some families; of all of them what the table lacks."""
    known = families()
    table = {family: cells for family, cells in read_table().items() if family in known}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = folder
        text = Text.make(home())
        for family in names or known:
            (home() / family).mkdir()
            subject = Subject(family, text, home() / family)
            before = {} if names else table.get(family, {})
            table[family] = {name: before.get(name) or prove(subject, name) for name in ABILITIES}
            print(family, table[family], flush=True)
    write_table({family: table[family] for family in known if family in table})


if __name__ == "__main__":
    main(sys.argv[1:])
