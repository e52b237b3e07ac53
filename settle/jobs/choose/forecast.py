"""How long a choice takes, by a few answers and a few steps of tuning on this machine, told before it begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import passages_of
from settle.jobs.choose.setup import Setup
from settle.jobs.choose.triage import ROWS
from settle.jobs.choose.ways import DECIDE, DOCUMENTS, PROMPT, TUNE, TUNE_DOCUMENTS, ZERO_SHOT
from settle.jobs.choose.ways.build import Work, tuning_recipe
from settle.jobs.choose.ways.prompts import CALLS
from settle.jobs.choose.ways.tune_ways import PASSAGE_EPOCHS, forecast_seconds

OTHER_SECONDS = 5.0  # starting llama.cpp, the page
ANSWERS = 3  # after a first one, which loads the model


@dataclass(frozen=True)
class Pace:
    """Seconds of an answer without passages and with them; of tuning on the examples, and of its steps among these.
    longer: how many times as long a training row with passages is, in tokens."""

    plain: float
    with_passages: float
    tuning: float
    steps: float
    longer: float = 1.0


def forecast(pace: Pace, train: int, test: int, ways: Mapping[str, bool], is_closed: bool) -> dict[str, float]:
    """Seconds by part: the triage, then each way. ways: those that are built, and whether they read passages."""
    has_passages = any(ways.values())
    rows = min(ROWS, train)
    parts = {"triage": rows * (pace.plain * (2 + is_closed) + 2 * pace.with_passages * has_passages)}
    tuning = pace.tuning
    with_passages = tuning + pace.steps * (PASSAGE_EPOCHS * pace.longer - 1)
    for way in ways:
        answers = test * (pace.with_passages if ways[way] else pace.plain)
        build = {
            ZERO_SHOT: OTHER_SECONDS,
            PROMPT: CALLS * pace.plain,
            DOCUMENTS: 0.0,
            DECIDE: tuning + OTHER_SECONDS,  # rows as long, one forward pass each
            TUNE: tuning + OTHER_SECONDS,
            TUNE_DOCUMENTS: with_passages + OTHER_SECONDS,
        }
        parts[way] = build[way] + answers
    return parts


def measure_pace(work: Work) -> Pace:
    """Seconds of an answer and of tuning, measured once a choice."""
    known = choice_folder.noted(work.folder).get("pace")
    if isinstance(known, dict):
        return Pace(**known)
    cases = work.examples.train_cases[: ANSWERS + 1]
    plain = work.ask("pace", work.arm(Setup()), cases)[1:]
    passages = passages_of(work.found_train)
    read = work.ask("pace", work.arm(Setup(), passages), cases[1:]) if passages else plain
    tuning, steps = forecast_seconds(tuning_recipe(work, TUNE), work.events)
    pace = Pace(
        plain=_mean([reply.seconds for reply in plain]),
        with_passages=_mean([reply.seconds for reply in read]) + work.search_seconds,
        tuning=tuning,
        steps=steps,
        longer=_mean([reply.read for reply in read]) / max(1.0, _mean([reply.read for reply in plain])),
    )
    choice_folder.note(work.folder, pace=vars(pace))
    return pace


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
