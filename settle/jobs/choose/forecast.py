"""How long a choice takes, by a few answers and a few steps of tuning on this machine, said before it begins and again
after the first look, which has timed many more answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from settle.base.errors import SettleError
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import PassagesFound
from settle.jobs.choose.setup import Setup
from settle.jobs.choose.triage import AS_IT_IS, EXAMPLES, GOLD, ROWS, SHOTS
from settle.jobs.choose.ways import DECIDE, DOCUMENTS, PROMPT, TUNE, TUNE_DOCUMENTS, ZERO_SHOT
from settle.jobs.choose.ways.build import READING_ROWS
from settle.jobs.choose.ways.prompts import CALLS, choose_shots
from settle.jobs.choose.ways.tune_ways import PASSAGE_EPOCHS, forecast_seconds
from settle.jobs.choose.ways.work import Work, tuning_recipe

OTHER_SECONDS = 5.0  # starting llama.cpp for other weights
TRIED_EXAMPLES = 0.6  # that the prompts of the search have in the mean, as a share of the first look's
ANSWERS = 3  # after a first one, which loads the model


@dataclass(frozen=True)
class Pace:
    """Seconds of an answer to the question alone, with examples before it, and with passages before it; of finding the
    passages; of tuning on the examples, and of its steps among these; of tuning a decision on them. longer: how many
    times as long a training row with passages is, in tokens."""

    plain: float
    with_examples: float
    with_passages: float
    search: float
    tuning: float
    steps: float
    deciding: float = 0.0
    longer: float = 1.0

    def after(self, seconds: Mapping[str, float], search: float) -> "Pace":
        """With what an answer of the first look took, by what was tried, and a search."""
        return replace(
            self,
            plain=seconds[AS_IT_IS],
            with_examples=seconds[EXAMPLES],
            with_passages=seconds.get(GOLD, self.with_passages),
            search=search,
        )


def forecast_triage(pace: Pace, train: int, reads: bool, has_form: bool) -> float:
    """Seconds of the first look. reads: there are documents. has_form: the answers have one that can be forced."""
    both = pace.with_passages + pace.with_examples - pace.plain
    read = (pace.search + pace.with_passages + both) * reads
    return min(ROWS, train) * (pace.plain * (1 + has_form) + pace.with_examples + read)


def forecast(pace: Pace, train: int, test: int, ways: Mapping[str, bool]) -> dict[str, float]:
    """Seconds by way. ways: those that are built, and whether they read passages."""
    tuning = pace.tuning
    with_passages = train * pace.search + tuning + pace.steps * (PASSAGE_EPOCHS * pace.longer - 1)
    examples = pace.with_examples - pace.plain  # that an answer takes longer for them
    build = {
        ZERO_SHOT: 0.0,  # the model is there
        PROMPT: CALLS * (pace.plain + TRIED_EXAMPLES * examples),
        DOCUMENTS: test * pace.search + READING_ROWS * (2 * pace.with_passages + examples),
        DECIDE: pace.deciding + OTHER_SECONDS,
        TUNE: tuning + OTHER_SECONDS,
        TUNE_DOCUMENTS: with_passages + OTHER_SECONDS,
    }
    answer = {way: pace.with_passages if reads else pace.plain for way, reads in ways.items()}
    if PROMPT in answer:
        answer[PROMPT] = pace.with_examples
    return {way: build[way] + test * answer[way] for way in ways}


def measure_pace(work: Work) -> Pace:
    """Seconds of an answer and of tuning, measured once a choice."""
    known = choice_folder.noted(work.folder).get("pace")
    if isinstance(known, dict):
        return Pace(**known)
    examples = work.examples
    shots = choose_shots(examples.train_cases[ANSWERS + 1 :], examples.labels, SHOTS)
    few = Setup(shots=tuple((case.question, case.reference) for case in shots))
    cases = examples.train_cases[: ANSWERS + 1]
    plain = work.ask("pace", work.arm(Setup()), cases)[1:]
    passages = PassagesFound(work.found_train)
    read = work.ask("pace", work.arm(Setup(), passages), cases[1:]) if passages else plain
    taught = work.ask("pace", work.arm(few), cases[1:])
    tuning, steps = forecast_seconds(tuning_recipe(work, TUNE), work.events)
    pace = Pace(
        plain=_mean([reply.seconds for reply in plain]),
        with_examples=_mean([reply.seconds for reply in taught]),
        with_passages=_mean([reply.seconds for reply in read]),
        search=work.search_seconds,
        tuning=tuning,
        steps=steps,
        deciding=_deciding(work, tuning) if examples.labels else 0.0,
        longer=_mean([reply.read for reply in read]) / max(1.0, _mean([reply.read for reply in plain])),
    )
    choice_folder.note(work.folder, pace=vars(pace))
    return pace


def _deciding(work: Work, tuning: float) -> float:
    """Seconds of tuning a decision. Where it cannot be tuned, the way itself says why: until then it is taken to be as
    long as the other tuning."""
    try:
        return forecast_seconds(tuning_recipe(work, DECIDE), work.events)[0]
    except SettleError:
        return tuning


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
