"""Documents that are cut too small: found by the collection's own setting, proven by cutting some of them anew."""

import shutil
from pathlib import Path

import pytest

from settle.base.event_log import Events
from settle.cli import main
from settle.doctor.checks import Check
from settle.doctor.find_subject import find_subject
from settle.doctor.prove import prove
from settle.doctor.subject import Running
from tests.retrieve.conftest import joined  # noqa: F401  the embedder of the collection

CHECK = Check.parts()["missed_passage"]()
WINDOWS = ("--chunker", "window", "--chunker.overlap", "2", "--chunker.tokens")


@pytest.fixture
def pages(home):
    """Some pages of settle's own documentation."""
    folder = home / "pages"
    folder.mkdir()
    for page in sorted((Path(__file__).parents[2] / "docs").glob("s[ech]*.md")):
        shutil.copy(page, folder)
    return folder


def indexed(pages, *settings):
    assert main(["index", str(pages), "--name", "pages", "--embedder", "hashed", *settings]) == 0
    return find_subject("pages", Running())


@pytest.mark.slow
def test_passages_that_are_too_small(pages, joined, tmp_path):  # noqa: F811
    subject = indexed(pages, *WINDOWS, "12")
    (finding,) = CHECK.detect(subject)
    assert finding.details == {"stage": "cut", "tokens": 12}
    proof = prove(CHECK.trial(finding, subject, tmp_path), tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert CHECK.fix(finding, subject).command == "settle index pages --anew --chunker.tokens 200"
    assert main(["index", "pages", "--anew", "--chunker.tokens", "200"]) == 0
    assert not list(CHECK.detect(find_subject("pages", Running())))
