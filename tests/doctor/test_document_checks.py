"""Documents that are cut too small: found by the collection's own setting, proven by cutting some of them anew."""

import pytest

from settle.base.event_log import Events
from settle.cli import main
from settle.doctor.checks import Check
from settle.doctor.find_subject import find_subject
from settle.doctor.known_answers import SENTENCES
from settle.doctor.prove import prove
from settle.doctor.subject import Running
from tests.retrieve.conftest import joined  # noqa: F401  the embedder of the collection

CHECK = Check.parts()["missed_passage"]()


@pytest.fixture
def pages(home):
    """Twenty pages of a few sentences each."""
    folder = home / "pages"
    folder.mkdir()
    for number in range(20):
        said = SENTENCES[2 * number :: 3][:4]
        (folder / f"{number}.md").write_text(f"# {said[0]}\n\n{' '.join(said)}\n")
    return folder


def indexed(pages, *settings):
    assert main(["index", str(pages), "--name", "pages", "--embedder", "hashed", *settings]) == 0
    return find_subject("pages", Running(passages=2))


@pytest.mark.slow
def test_passages_that_are_too_small(pages, joined, tmp_path):  # noqa: F811
    subject = indexed(pages, "--chunker.tokens", "12")
    (finding,) = CHECK.detect(subject)
    assert finding.details == {"stage": "cut", "tokens": 12}
    proof = prove(CHECK.trial(finding, subject, tmp_path), tmp_path / "measurements.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert CHECK.fix(finding, subject).command == "settle index pages --anew --chunker.tokens 200"
    assert main(["index", "pages", "--anew", "--chunker.tokens", "200"]) == 0
    assert not list(CHECK.detect(find_subject("pages", Running(passages=4))))
