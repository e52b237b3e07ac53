"""What docs/readers.md says is so."""

import re
from pathlib import Path

import settle
from settle.base.registry import parts
from settle.documents import decode, reader_child, reader_pool
from settle.documents.readers.text.code import _GRAMMARS

PAGE = (Path(settle.__file__).parents[1] / "docs" / "readers.md").read_text(encoding="utf-8")


def _own(family: str):
    return {name: kind for name, kind in parts(family).items() if kind.__module__.startswith("settle.")}


def test_every_reader_with_the_files_it_reads():
    rows = {name: set(re.split(r"[,; ]+", files)) for name, files in re.findall(r"^\| (\w+) \| ([^|]+) \|", PAGE, re.M)}
    for name, kind in _own("documents/readers").items():
        suffixes = _GRAMMARS if name == "code" else kind.suffixes
        assert {suffix[1:] for suffix in suffixes} <= rows[name], name


def test_no_two_readers_claim_the_same_files():
    claims = [claim for kind in parts("documents/readers").values() for claim in (*kind.suffixes, *kind.names)]
    assert len(claims) == len(set(claims)) and all(claim == claim.lower() for claim in claims)


def test_every_chunker_with_its_settings():
    name = ""
    said = {}
    for row in re.findall(r"^\| (\w*) ?\| `(\w+)` \| (\d+) \|", PAGE, re.M):
        name = row[0] or name
        said[name, row[1]] = row[2]
    known = {
        (name, setting): str(field.default)
        for name, kind in _own("retrieve/index/chunkers").items()
        for setting, field in kind.model_fields.items()
    }
    assert said == known


def test_limits():
    words = " ".join(PAGE.split())
    assert f"may take {reader_pool.SECONDS:.0f} seconds and {reader_child.MEMORY >> 30} GiB" in words
    assert f"{reader_child.MOST_TEXT >> 20} million characters" in words
    assert decode.LONGEST_LINE >> 20 == 1 and "a line of more than a million characters" in words
