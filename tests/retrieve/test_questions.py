"""Questions whose answers are known before they are asked."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from settle.retrieve.check import phrases
from settle.retrieve.check.phrases import Rewording, definitions
from settle.retrieve.check.questions import MOST_COPIED, SENTENCES, make
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from tests.retrieve.asked import index
from tests.retrieve.checking import indexed

TWICE = "# Brakes\n\nThe brake of the winding engine is released by turning the ivory wheel twice to the left.\n"
CODE = 'def turn(wheel):\n    """Return the wheel after one turn to the left."""\n    return wheel.left()\n'


@pytest.fixture
def collection(home, folder):
    indexed("docs", folder, 24)
    with Collection("docs") as opened:
        yield opened


def test_questions_are_spread_over_documents_and_kinds_and_the_same_for_a_seed(collection):
    made = make(collection, 48)
    assert len(made) == 48
    assert len({question.document for question in made}) > 20
    assert set(Counter(question.kind for question in made)) >= {"heading", "definition", "sentence", "row"}
    assert made == make(collection, 48)
    assert made != make(collection, 48, seed=1)


def test_sentences_are_asked_where_there_is_little_else(home, folder):
    said = "The {0}lamp of room {0} is lit by the {1} guard at {0} in the evening."
    prose = {f"{i}.txt": said.format(f"{i}{chr(97 + i)}", f"{i * 7}th") for i in range(30)}
    index("prose", folder, prose)
    with Collection("prose") as collection:
        assert {question.kind for question in make(collection, 20)} == {"sentence"}
        assert len(make(collection, 20)) > 2 * SENTENCES * 20
    index("mixed", folder, {f"{i}.md": f"# Pump {chr(65 + i) * 4}\n\nIt has lever {i}.\n" for i in range(25)})
    with Collection("mixed") as collection:
        kinds = Counter(question.kind for question in make(collection, 24))
        assert 0 < kinds["sentence"] <= SENTENCES * 24 and sum(kinds.values()) == 24


def test_the_answer_is_known_and_its_topic_can_be_left_out(collection):
    catalogue = collection.catalogue
    questions = make(collection, 48)
    assert len(questions) > 24
    for question in questions:
        assert question.passage in question.answers <= question.topic
        text = catalogue.passages.get([question.passage])[question.passage].text
        assert phrases.longest_copied(question.text, text) <= MOST_COPIED
        # 24 documents: one of them is less than a tenth, and is left out as a whole
        assert question.without == {question.document}
        assert {i for _, i in catalogue.passages.around(question.document, 0, 99)} <= question.topic


def test_what_says_the_same_elsewhere_answers_too(home, folder):
    others = {f"{i}.md": f"# Room {i}\n\nIn room {i} stands a lamp of the colour number {i * 7}.\n" for i in range(20)}
    index("docs", folder, {"a.md": TWICE, "b.md": TWICE + "\nAnd do not hurry.\n", **others})
    with Collection("docs") as collection:
        made = [question for seed in range(4) for question in make(collection, 40, seed)]
        about = [question for question in made if question.path.endswith(("a.md", "b.md"))]
        assert any(question.kind in ("sentence", "meaning") for question in about)
        for question in about:
            if question.kind in ("sentence", "meaning"):
                assert len(question.answers) == 2


def test_a_heading_that_others_have_too_is_not_asked_alone(home, folder):
    texts = {f"{i}.md": f"# Pump {chr(65 + i) * 4}\n\n## Options\n\nIt has lever {i}.\n" for i in range(12)}
    index("docs", folder, texts)
    with Collection("docs") as collection:
        asked = [q.text.lower() for q in make(collection, 60) if q.kind == "heading"]
        assert asked
        assert all("pump" in question for question in asked)


def test_a_collection_without_text_gives_none(home, folder):
    index("docs", folder, {"a.md": "# A\n"})
    with Collection("docs") as collection:
        assert make(collection, 10) == []


BASES = (
    "rotate install run parse use handle add remove pass create update delete store restore ignore compare share"
    " require configure measure define train join explain compile schedule fail decode load upload build make"
    " check take escape type help write compute edit format visit test import rename resume perform stream"
    " describe change manage merge bring log debug close release process access choose continue queue cache save"
    " trace index fix tune read send"
)


def test_base_of_a_gerund():
    doubled = {"run": "running", "log": "logging", "debug": "debugging"}
    for base in BASES.split():
        gerund = doubled.get(base, base.removesuffix("e") + "ing")
        assert phrases.base_of_gerund(gerund.capitalize()) == base
    for other in ("string", "the", "king", "ring", "ing"):
        assert phrases.base_of_gerund(other) == ""


def test_what_a_passage_defines():
    assert definitions("A spindle is a rod that turns with the work on it.", False)[0][0] == "spindle"
    assert definitions("- **chuck**: holds the work while it turns", False)[0][0] == "chuck"
    assert definitions("lathe\n\n<tool> A machine that turns the work against a knife.", True) == [
        ("lathe", "A machine that turns the work against a knife.")
    ]
    for nothing in (
        "It is a rod that turns with the work on it.",
        "Here is a rod that turns with the work on it.",
        "Note: there is no rod that turns with the work on it",
        "the lathe's home: <https://lathes.example.org/turning?with=the+work>",
        "- spindle: 4 x M8, 0x7f, {a: 1}, and -f 99",
    ):
        assert definitions(nothing, False) == []


def test_functions_and_rows_are_asked_for():
    assert phrases.functions(CODE) == [("turn", "Return the wheel after one turn to the left.")]
    assert phrases.of_function("Returns the wheel", Random(1)).split()[-1:] == ["wheel"]
    table = "| option | default |\n|---|---|\n| `--depth` | 4 |"
    assert phrases.rows(table) == [("--depth", "default", "4")]
    assert "--depth" in phrases.of_row("--depth", "default", Random(0))


def test_a_definition_asked_by_its_meaning_does_not_name_it():
    for seed in range(20):
        asked = phrases.of_meaning("a rod, the spindle, that turns with the work", "spindle", Random(seed))
        assert "spindle" not in asked
    assert "Colt" in phrases.of_meaning("A drill built by S. Colt for guns; later sold", "Colter", Random(1))


class _Near:
    """Puts `quick` beside `fast`, and every other word by itself."""

    def documents(self, texts):
        found = np.eye(len(texts), dtype=np.float32)
        if "fast" in texts and "quick" in texts:
            found[texts.index("quick")] = found[texts.index("fast")]
        return found


def test_words_are_replaced_by_their_neighbours_and_names_stay():
    near = Rewording(_Near(), ["the quick falcon is fast", "Falcon machines run Quick jobs"])
    told = {near.reworded("a Quick and fast Machine", Random(seed)) for seed in range(40)}
    assert "a Fast and fast Machine" in told
    assert all("Machine" in text for text in told)
    assert all(len(words(text)) == 3 for text in told)
