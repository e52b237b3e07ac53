"""The best of a few prompts, by answers to training examples: which instruction, with how many examples before it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, plain
from settle.experiment.arm import Reply
from settle.jobs.choose.answerer import Setup
from settle.jobs.choose.examples import ExampleSet

CALLS = 60  # answers that the whole search may take
FIRST_ROWS = 5  # that every prompt answers; then the better half answers as many more as the calls allow
SHOTS = (4, 8)  # examples before a question
SHOT_LETTERS = 2400  # of all examples together: a prompt is read again before every question
INSTRUCTIONS = (
    "Answer with the answer alone, in as few words as possible.",
    "Answer in exactly the form of the examples.",
)
Ask = Callable[[Setup, Sequence[Case]], list[Reply]]


@dataclass(frozen=True)
class Tried:
    """A prompt, its mean score and the number of rows that it was tried on."""

    setup: Setup
    score: float
    rows: int


def search_prompt(examples: ExampleSet, task: Task, ask: Ask, seed: int) -> list[Tried]:
    """Try prompts by successive halving (Jamieson and Talwalkar 2016), and return them, the best first.

    Of those that score alike the shortest comes first. Examples in a prompt and rows that it is tried on are different
    training examples.
    """
    train, labels, form = examples.train_cases, examples.labels, examples.form
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    shots = choose_shots([train[i] for i in order], labels, max(SHOTS))
    taken = {case.number for case in shots}
    rows = [train[i] for i in order if train[i].number not in taken] or list(train)
    setups = list(dict.fromkeys(_candidates(shots, labels, form.grammar if form else "")))
    scores: dict[Setup, list[float]] = {setup: [] for setup in setups}
    left, calls = setups, 0
    while len(left) > 1 or not calls:
        begin = len(scores[left[0]])
        number = FIRST_ROWS if not calls else (CALLS - calls) // len(left)
        group = rows[begin : begin + number]
        if not group or calls + len(group) * len(left) > CALLS:
            break
        for setup in left:
            replies = ask(setup, group)
            scores[setup] += [score_of(task, reply, case) for reply, case in zip(replies, group, strict=True)]
        calls += len(group) * len(left)
        left = sorted(left, key=lambda s: (-np.mean(scores[s]), s.length))[: max(1, len(left) // 2)]
        if calls > CALLS - len(left):
            break
    tried = [Tried(s, float(np.mean(values)), len(values)) for s, values in scores.items() if values]
    # what was tried on few rows and dropped out is behind whatever stayed
    return sorted(tried, key=lambda t: (-t.rows, -t.score, t.setup.length))


def score_of(task: Task, reply: Reply, case: Case) -> float:
    """Return how right a reply is; 0 where the question did not fit."""
    return task.score(reply.text, case) if reply.asked else 0.0


def choose_shots(train: Sequence[Case], labels: Sequence[str], number: int) -> list[Case]:
    """Choose examples of all kinds, short enough to be read before every question.

    Of a closed set each answer comes in turn, of others as they are. Rows of several turns are no examples.
    """
    usable = [case for case in train if case.prompt is not None]
    if labels:
        by_label = [[c for c in usable if plain(c.reference) == plain(label)] for label in labels]
        usable = [c for turn in itertools.zip_longest(*by_label) for c in turn if c is not None]
    chosen: list[Case] = []
    for case in usable:
        letters = sum(len(c.question) + len(c.reference) for c in (*chosen, case))
        if len(chosen) < number and letters <= SHOT_LETTERS:
            chosen.append(case)
    return chosen


def _candidates(shots: Sequence[Case], labels: Sequence[str], grammar: str) -> list[Setup]:
    short, like_examples = INSTRUCTIONS
    instructions = ["", short]
    if labels:
        instructions = ["", f"Answer with one of these and nothing else: {', '.join(labels)}."]
    pairs = tuple((case.question, case.reference) for case in shots)
    setups = [Setup(system=instruction) for instruction in instructions[1:]]
    for number in SHOTS:
        if len(pairs) >= min(SHOTS):
            setups += [Setup(shots=pairs[:number])]
            setups += [Setup(system=i, shots=pairs[:number]) for i in (instructions[1], like_examples)]
    return [replace(setup, grammar=grammar) for setup in setups]
