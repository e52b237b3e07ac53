"""A first look at a few training examples, before anything expensive: what is missing, and which ways can still win."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer

from settle.base.statistics import Interval, bootstrap_mean
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task
from settle.experiment.arm import Reply
from settle.jobs.choose.answerer import (
    DECIDE,
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    ZERO_SHOT,
    Passages,
    Setup,
)
from settle.jobs.choose.documents import Found
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.prompts import choose_shots, score_of

ROWS, FEWEST = 30, 10  # training examples that it takes, at most and at least
SHOTS = 8  # examples in the prompt
SOLVED = 0.9  # mean score that leaves too little to gain for what costs more
REPAIRS = 0.1  # gain from which on something repairs the answers
IN_DOCUMENTS = 0.3  # share of answers found in the documents, from which on they matter
AS_IT_IS, EXAMPLES, GOLD, GOLD_EXAMPLES, FORM = (
    "as it is",
    "examples in the prompt",
    "the right passage in the prompt",
    "the right passage and examples",
    "held to the form of the answers",
)
# in a setup, with passages by the number of a case
Ask = Callable[[Setup, Passages, Sequence[Case]], list[Reply]]


@dataclass(frozen=True)
class Triage:
    """What the first look showed."""

    rows: int
    scores: Mapping[str, float]  # mean score by what was tried
    seconds: Mapping[str, float]  # mean time of an answer by what was tried
    # over the model as it is, in pairs, with 95 % intervals
    gains: Mapping[str, Annotated[Interval, PlainSerializer(Interval.to_json)]]
    in_documents: float  # share of answers that a passage holds
    prediction: str  # the way that is expected to win, and why
    why: str
    ruled_out: Mapping[str, str]  # the ways that cannot win, and why


def triage(examples: ExampleSet, found: Mapping[int, Found], task: Task, ask: Ask, seed: int) -> Triage:
    """Ask up to ROWS training examples in each way that is tried.

    Examples in the prompt are others than those that are asked. found: what the documents have for each, by its number;
    empty without documents.
    """
    train, labels, form = examples.train_cases, examples.labels, examples.form
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    shots = choose_shots([train[i] for i in order], labels, SHOTS)
    taken = {case.number for case in shots}
    rows = [train[i] for i in order if train[i].number not in taken][:ROWS]
    shown = Setup(shots=tuple((case.question, case.reference) for case in shots))
    gold = {case.number: _with_gold(found[case.number]) for case in rows if case.number in found}
    tried: dict[str, tuple[Setup, Passages]] = {
        AS_IT_IS: (Setup(), {}),
        EXAMPLES: (shown, {}),
    }
    in_documents = sum(bool(found[c.number].gold) for c in rows if c.number in found) / max(1, len(rows))
    if in_documents >= IN_DOCUMENTS:
        tried |= {GOLD: (Setup(), gold), GOLD_EXAMPLES: (shown, gold)}
    if form:
        tried[FORM] = (Setup(grammar=form.grammar), {})
    replies = {name: ask(*what, rows) for name, what in tried.items()}
    scores = {
        name: [score_of(task, reply, case) for reply, case in zip(of_name, rows, strict=True)]
        for name, of_name in replies.items()
    }
    seconds = {name: sum(reply.seconds for reply in of_name) / len(rows) for name, of_name in replies.items()}
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    gains = {
        name: bootstrap_mean(np.subtract(values, scores[AS_IT_IS]))
        for name, values in scores.items()
        if name != AS_IT_IS
    }
    prediction, why = predict(means, bool(labels))
    out = _ruled_out(means, in_documents, bool(found), bool(labels))
    return Triage(len(rows), means, seconds, gains, in_documents, prediction, why, out)


def predict(means: Mapping[str, float], is_closed: bool) -> tuple[str, str]:
    """Return the way that is expected to win, and why."""
    asked, prompted = means[AS_IT_IS], max(means[EXAMPLES], means.get(FORM, 0.0))
    read = max(means.get(GOLD, 0.0), means.get(GOLD_EXAMPLES, 0.0))
    if asked >= SOLVED:
        return ZERO_SHOT, f"the model as it is gets {asked:.0%} already"
    if read - max(asked, prompted) >= REPAIRS:
        return DOCUMENTS, f"the right passage lifts it to {read:.0%}: what is missing is knowledge"
    if prompted >= SOLVED:
        return PROMPT, f"a few examples lift it to {prompted:.0%}: what is missing is the form"
    if is_closed:
        return DECIDE, "the answers are a closed set, which a few examples in the prompt do not teach"
    if prompted - asked >= REPAIRS:
        return PROMPT, f"a few examples lift it to {prompted:.0%}; all of them may lift it further"
    return TUNE, "neither passages nor a few examples repair the answers: what is missing is a skill"


def _ruled_out(means: Mapping[str, float], in_documents: float, has_documents: bool, is_closed: bool) -> dict[str, str]:
    """Return the ways that cannot win any more, with the reason."""
    out: dict[str, str] = {}
    asked, prompted = means[AS_IT_IS], max(means[EXAMPLES], means.get(FORM, 0.0))
    read = max(means.get(GOLD, 0.0), means.get(GOLD_EXAMPLES, 0.0))
    if has_documents and in_documents < IN_DOCUMENTS:
        reason = f"the documents hold {in_documents:.0%} of the answers"
        out |= {DOCUMENTS: reason, TUNE_DOCUMENTS: reason}
    elif has_documents and read - max(asked, prompted) < REPAIRS:
        reason = "not even the right passage improves the answers over a few examples"
        out |= {DOCUMENTS: reason, TUNE_DOCUMENTS: reason}
    best = max(asked, prompted, read)
    if best >= SOLVED:
        reason = f"{best:.0%} are right without changing weights"
        out |= {TUNE: reason, TUNE_DOCUMENTS: out.get(TUNE_DOCUMENTS, reason)}
        out |= {DECIDE: reason} if is_closed else {}
    elif DOCUMENTS not in out and has_documents and prompted - asked < REPAIRS:
        out[TUNE] = "the answers are in the documents, and examples of other answers do not teach them"
    return out


def _with_gold(found: Found) -> Found:
    """Return the passages for a question with the right one among them."""
    if not found.gold or found.is_found:
        return found
    return replace(found, passages=(found.gold, *found.passages[:-1]))
