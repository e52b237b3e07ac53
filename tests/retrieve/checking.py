"""A collection to check: enough short documents, each about something of its own."""

from pathlib import Path

from tests.retrieve.asked import index

NAMES = (
    "amber", "basil", "cedar", "dahlia", "ember", "falcon", "garnet", "heron", "indigo", "jasper", "kestrel", "lupin",
    "magnet", "nutmeg", "onyx", "poppy",
)  # fmt: skip
JOBS = ("counting", "sorting", "packing", "mending", "printing", "drying", "weights", "folding")


def documents(number: int) -> dict[str, str]:
    """So many, named `0.md` and so on, with headings, definitions, sentences, a table and a function."""
    made = {}
    for i in range(number):
        name = NAMES[i % len(NAMES)] + ("" if i < len(NAMES) else f" {JOBS[i % len(JOBS)]}")
        other, job = NAMES[(i * 7 + 3) % len(NAMES)], JOBS[(i * 5 + 1) % len(JOBS)]
        made[f"{i}.md"] = f"""# The {name} machine

A {name} machine is a device for {job} parcels number {i} that the {other} workshop sends away.

## Starting the {name} machine

Press lever {i * 17 % 101} and wait until the {name} lamp of the {job} tray turns green. The lever can stick in winter.

## Looking after {other} hinges of {name}

Once in {i + 3} weeks the {other} hinge behind the {name} belt must be cleaned with a brush of {job} bristle.

## Trouble with {name} trays

| fault {name} | remedy |
|---|---|
| tray {name} stuck | oil the {other} hinge with grease {i} |
"""
    return made


def indexed(name: str, folder: Path, number: int) -> None:
    index(name, folder, documents(number))
