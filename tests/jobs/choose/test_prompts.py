"""The search for a prompt, and rows to tune on, with answers that a function gives."""

import json

from settle.data.layouts import Example
from settle.evaluate.compare.cases import cases
from settle.evaluate.tasks.exact import Exact
from settle.experiment.arm import Reply
from settle.jobs.choose.answerer import Setup, with_passages
from settle.jobs.choose.documents import Found, holds
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.prompts import CALLS, SHOT_LETTERS, choose_shots, search_prompt
from settle.jobs.choose.ways import write_rows


def rows(number, answer=str):
    return [
        Example(
            "chat", [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": answer(n)}], single=True
        )
        for n in range(number)
    ]


def test_the_search_finds_what_helps_within_its_calls():
    asked = []

    def ask(setup, some):
        asked.extend(some)
        shown = {question for question, _ in setup.shots}
        assert not shown & {case.question for case in some}, "a row that is an example answers nothing"
        return [Reply(case.reference if len(setup.shots) == 8 else "?") for case in some]

    tried = search_prompt(ExampleSet(rows(40), [], []), Exact(), ask, 0)
    assert len(tried[0].setup.shots) == 8 and tried[0].score == 1.0
    assert len(asked) <= CALLS
    assert tried[0].setup.system == ""  # of those that are as good the shortest


def test_examples_are_of_every_answer_of_a_closed_set_and_short():
    train = cases(rows(30, lambda n: "rare" if n == 29 else "often" if n % 2 else "usual"))
    assert {case.reference for case in choose_shots(train, ["often", "usual", "rare"], 4)} == {"rare", "often", "usual"}
    long = cases(rows(10, lambda n: "x" * (SHOT_LETTERS // 2)))
    assert len(choose_shots(long, [], 8)) == 1


def test_rows_with_passages_have_the_answer_mostly_and_others_always(tmp_path):
    gold = "The mill costs 9 euros."
    found = {n: Found((gold, "One.", "Two."), gold, 0.0) for n in range(1, 201)}
    write_rows(tmp_path / "rows.jsonl", rows(200), found, 0)
    texts = [json.loads(line)["messages"][0]["content"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert 0.7 < sum(gold in text for text in texts) / 200 < 0.9
    assert all("One." in text or "Two." in text for text in texts) and all(text.endswith("q7") for text in texts[7:8])
    assert len({text.index(gold) for text in texts if gold in text}) > 1  # not always at the same place


def test_a_setup_is_turns_with_the_rows_own_system_prompt_first():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    case = cases([Example("chat", [*messages, {"role": "assistant", "content": "a"}])])[0]
    turns = Setup("In French.", (("x", "y"),)).turns(case, ["p"])
    assert turns == [
        ("system", "Be brief.\n\nIn French."),
        ("user", "x"),
        ("assistant", "y"),
        ("user", with_passages("q", ["p"])),
    ]


def test_a_passage_holds_an_answer_that_has_nearly_all_its_words():
    assert holds("It weighs 14.2 kg without the box.", "14.2 kg")
    assert not holds("It weighs 14.2 pounds.", "9 kg") and not holds("anything", "")
