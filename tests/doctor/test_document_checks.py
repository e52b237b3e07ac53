"""Documents that are cut too small, proven by cutting some of them anew; and passages that a model does not read."""

import shutil
from pathlib import Path

import pytest

from settle.base.event_log import Events
from settle.cli import main
from settle.doctor.checks import Check
from settle.doctor.checks.answers import missed_passage
from settle.doctor.checks.answers.missed_passage import FactSide, fact_items
from settle.doctor.find_subject import find_subject
from settle.doctor.served_model import Door
from settle.doctor.subject import ModelFile, Running
from settle.experiment.run import prove
from tests.doctor.chat_model import healthy
from tests.retrieve.conftest import joined  # noqa: F401  the embedder of the collection

CHECK = Check.parts()["missed_passage"]()
WINDOWS = ("--chunker", "window", "--chunker.overlap", "2", "--chunker.tokens")


@pytest.fixture
def pages(home):
    """Copy some pages of settle's own documentation."""
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
    assert finding.details.to_json() == {"stage": "cut", "tokens": 12}
    proof = prove(CHECK.trial(finding, subject, tmp_path), tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert CHECK.fix(finding, subject).command == "settle index pages --anew --chunker.tokens 200"
    assert main(["index", "pages", "--anew", "--chunker.tokens", "200"]) == 0
    assert not list(CHECK.detect(find_subject("pages", Running())))


@pytest.mark.slow
def test_a_passage_that_finds_no_room_in_the_prompt(pages, joined):  # noqa: F811
    """The fact is in the last of the first few; with fewer it is in the prompt."""
    subject = indexed(pages)
    (item,) = fact_items(["How are the models shrunk?"], seed=0)
    side = FactSide("as it is", healthy(ModelFile).model, subject.name, deep=12, k=12)
    side.load()
    try:
        seen = {}
        for side.k in (12, 1):
            ids = side.reading(side.held.engine, item).ids
            seen[side.k] = side.dropped > 0, item["sentence"] in side.held.engine.detokenize(ids)
        assert seen == {12: (True, False), 1: (False, True)}
    finally:
        side.close()


@pytest.mark.slow
def test_a_model_that_does_not_read_passages(pages, joined, monkeypatch):  # noqa: F811
    monkeypatch.setattr(missed_passage, "_fewer", lambda k: [])  # of so small a model chance decides what fewer help
    indexed(pages)
    model = healthy(ModelFile).model  # it knows some texts by heart, and copies nothing
    subject = find_subject("pages", Running(), door=Door(str(model.weights)))
    (finding,) = CHECK.detect(subject)
    assert finding.details.to_json() == {"stage": "unread", "k": 4, "fewer": None, "other": None}
    assert "does not read" in finding.what and CHECK.trial(finding, subject, pages) is None
    assert "larger model" in CHECK.fix(finding, subject).what
