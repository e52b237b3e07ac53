"""Runs, results and comparisons as a notebook shows them: complete, escaped, and without anything that could run."""

import json
import struct
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

from settle.api import FinishedRun
from settle.base.errors import UsageError
from settle.retrieve.answer.answer import CitedAnswer, Piece, Source
from tests.studio.made_runs import FINISHED, training, write_run
from tests.studio.payloads import PAYLOADS

ALLOWED = {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "img"}


class Reader(HTMLParser):
    """tags and attributes that a browser would see, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def test_a_notebook_shows_a_run_its_result_and_its_comparison(home):
    compared = {"headline": "better than its base", "verdict": "better", "difference": 0.25}
    folder = write_run(home, "calm", training(10), FINISHED | {"comparison": compared})
    (folder / "out" / "curves.png").write_bytes(png())
    run = FinishedRun.find("calm")
    seen = Reader(run._repr_html_())
    assert {"table", "img"} <= seen.tags <= ALLOWED
    for text in (
        "calm settled",
        "2.2600 ± 0.0100",
        "better than its base",
        "passed",
        "1 min 44 s",
        "Nothing left",
    ):
        assert text in seen.text
    assert "0.25" in Reader(run.result.comparison._repr_html_()).text
    assert json.loads(json.dumps(run.result.to_json()))["comparison"] == compared


def test_nothing_in_a_result_becomes_a_part_of_the_notebook(home):
    hostile = {f"x{n}": text for n, text in enumerate(PAYLOADS)}
    write_run(home, "bad", training(3), FINISHED | {"why": "".join(PAYLOADS), "comparison": hostile,
                                                   "audit": {"sentence": PAYLOADS[0]}})  # fmt: skip
    result = FinishedRun.find("bad").result
    for html in (result._repr_html_(), result.comparison._repr_html_()):
        seen = Reader(html)
        assert seen.tags <= ALLOWED and seen.attributes <= {"style"}
        assert "onerror" in seen.text


def test_nothing_in_a_passage_becomes_a_part_of_the_notebook():
    hostile = "".join(PAYLOADS)
    place = SimpleNamespace(place=SimpleNamespace(after=lambda path: hostile), path="")
    source: Any = Source(1, (Piece(SimpleNamespace(text=hostile), place),))
    evidence: Any = None
    seen = Reader(CitedAnswer("q", hostile, "refused", evidence, (), (source,))._repr_html_())
    assert seen.tags == {"p"} and seen.attributes == {"style"} and seen.text.count("onerror") >= 3


def test_a_notebook_shows_what_happened_and_the_fix_of_a_mistake():
    assert UsageError("it is late", "begin")._render_traceback_() == ["UsageError: it is late", "Fix: begin"]
    assert UsageError("it is late")._render_traceback_() == ["UsageError: it is late"]
