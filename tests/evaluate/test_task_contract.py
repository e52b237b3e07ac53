"""What every task keeps to, whoever wrote it: asked of each part that the registry finds."""

import json
from pathlib import Path

import pytest

from settle.base.errors import UsageError
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, best_suited

DATA = {
    "words": ["Paris", "Rome", "Bern"] * 10,
    "text": [f"A longer answer of many words about the number {n} and what it means to others." for n in range(30)],
    "numbers": [f"We add {n} and {n}.\n#### {2 * n}" for n in range(30)],
    "json": [json.dumps({"city": "Rome", "people": n}) for n in range(30)],
    "calls": [json.dumps({"name": "look_up", "arguments": {"id": n}}) for n in range(30)],
}


def questions(answers: list[str]) -> list[Case]:
    return [Case(n, answer, ({"role": "user", "content": f"question {n}"},)) for n, answer in enumerate(answers, 1)]


def instances(part: type[Task], folder: Path) -> list[tuple[Task, list[Case]]]:
    """The part as each kind of data asks for it, with the data; as a person's file asks, where none does."""
    suited = [(part.suited(cases), cases) for cases in map(questions, DATA.values())]
    tasks = [(task, cases) for task, cases in suited if task is not None]
    if not tasks:
        file = folder / "scorer.py"
        file.write_text("def score(answer, reference, case):\n    return answer == reference\n")
        tasks = [(part.from_value(str(file)), questions(DATA["words"]))]
    return tasks


@pytest.mark.parametrize("name", Task.part_names())
def test_the_wanted_answer_scores_best_and_nothing_scores_least(name: str, tmp_path: Path) -> None:
    part = Task.part(name)
    made = list(instances(part, tmp_path))
    assert made and all(cases for _, cases in made)
    for task, cases in made:
        assert task.title and isinstance(task, part)
        for case in cases:
            best, worst = task.score(case.reference, case), task.score("", case)
            assert best == 1 and worst < best, (task, case)
            assert not task.is_share or worst >= 0
        for other in task.beside():
            assert isinstance(other, Task) and other != task and other.score(cases[0].reference, cases[0]) == 1


@pytest.mark.parametrize("name", Task.part_names())
def test_it_is_asked_for_by_name_or_says_what_to_give(name: str) -> None:
    try:
        assert isinstance(Task.part(name).from_value(""), Task)
    except (UsageError, ValueError) as e:
        assert str(e)


def test_no_two_share_a_rank_and_all_data_has_its_task() -> None:
    ranks = [part.rank for part in Task.parts().values() if part.rank]
    assert len(ranks) == len(set(ranks))
    for answers in DATA.values():
        cases = questions(answers)
        assert type(best_suited(cases)).suited(cases) is not None
