"""The checks of training on a tiny model that is really tuned: wrongly, and as it should be."""

import pytest

from settle.base.event_log import Events
from settle.doctor.checks import Check
from settle.doctor.find_subject import of_model
from settle.doctor.prove import prove
from settle.doctor.subject import Running
from settle.doctor.training.example_run import example_run
from settle.formats import ModelContents
from settle.formats.gguf import Gguf
from settle.library.resolve import resolve_gguf
from tests.trained import trained


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The tiny model of the tests as a subject, in a home of its own, and where runs of it go."""
    folder = tmp_path_factory.mktemp("training")
    patch = pytest.MonkeyPatch()
    patch.setenv("SETTLE_HOME", str(folder / "home"))
    tiny = trained()
    card = {"name": "tiny", "base": True}
    path = Gguf().write(folder / "tiny.gguf", ModelContents(tiny.part, tiny.weights, tiny.tokenizer, card))
    yield of_model(resolve_gguf(str(path)), str(path), Running()), folder
    patch.undo()


@pytest.fixture(scope="module")
def tuned(healthy):
    """A run of that model that learned something."""
    subject, folder = healthy
    return example_run(subject, folder / "sound", {})


def look(name, subject):
    return list(Check.part(name)().detect(subject))


@pytest.mark.parametrize("name", ["did_nothing"])
def test_a_fault_of_training_is_found_and_proven(name, healthy, tuned, tmp_path):
    check = Check.part(name)()
    assert look(name, tuned) == []
    broken = check.injected(healthy[0], healthy[1] / name)
    (finding,) = look(name, broken)
    trial = check.trial(finding, broken, tmp_path)
    proof = prove(trial, tmp_path / "measurements.jsonl", Events())
    assert proof.state == "proven" and proof.verified, proof
    assert "--recipe" in check.fix(finding, broken).command
