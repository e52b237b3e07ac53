"""Documents of a choice: what they hold of the answers, and a fact that is changed in one of them."""

import pytest

from settle.base.event_log import Events
from settle.evaluate.compare.cases import asking
from settle.jobs.choose import documents
from settle.jobs.choose.context import ChoiceFolder
from settle.jobs.choose.documents import Documents, change_fact
from settle.jobs.settings import IndexSettings
from tests.retrieve.conftest import joined  # noqa: F401  a fixture

TEXTS = {
    "mill.md": "# Mill\n\nThe mill weighs 14 kilograms. It was made in Turin.\n",
    "loom.md": "# Loom\n\nThe loom weighs 22 kilograms. It was made in Ghent.\n",
    "faq.md": "# Questions\n\nHow long does the guarantee of the kiln last? It lasts seven years.\n",
}


@pytest.fixture
def folder(tmp_path, home, monkeypatch, joined):  # noqa: F811
    monkeypatch.setattr(documents, "IndexSettings", lambda: IndexSettings.model_validate({"embedder": "hashed"}))
    made = tmp_path / "docs"
    made.mkdir()
    for name, text in TEXTS.items():
        (made / name).write_text(text)
    return made


def wanting(question, answer, number=1):
    case = asking(question, number)
    return type(case)(number, answer, case.messages, prompt=case.prompt)


def test_what_documents_hold_and_what_a_changed_fact_costs(folder, home):
    with Documents("made", folder, Events()) as held:
        weight = wanting("What does the mill weigh?", "14 kilograms")
        found = held.find(weight)
        assert found.is_found and "14 kilograms" in found.gold and held.place(found.gold).name == "mill.md"
        assert held.find(wanting("What does the mill cost?", "9 euros")).gold == ""
        assert held.holds_verbatim(wanting("How long does the guarantee of the kiln last?", "seven years"))
        assert not held.holds_verbatim(weight)
    changed = change_fact(folder / "mill.md", weight, "99 kilograms", Events())
    assert changed.found.is_found and changed.seconds > 0 and "99 kilograms" in changed.found.gold
    assert "14 kilograms" in (folder / "mill.md").read_text()  # the person's own document is as it was
    assert change_fact(folder / "mill.md", wanting("q", "no such words"), "x", Events()) is None
    assert [p.name for p in (home / "collections").iterdir()] == ["made"]
    assert not list(home.glob(".changed-*"))


def test_what_belongs_to_a_choice_keeps_its_name(tmp_path):
    """A run or a collection of that name that something else made is never taken for its own."""
    folder = ChoiceFolder(tmp_path)
    assert folder.own_name("run tune", "rows-tune", ["rows-tune"]) == "rows-tune-2"
    assert folder.own_name("run tune", "rows-tune", []) == "rows-tune-2"
