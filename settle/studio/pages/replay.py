"""A run, replayed: what it wrote, what it was reading, and how unsure it was, from its first step to its last."""

import math
from collections.abc import Mapping, Sequence
from typing import cast
from urllib.parse import quote

from nicegui import ui

from settle.base.errors import RunError
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.words.amounts import amount, count, duration, number
from settle.studio.command_child import read_module
from settle.studio.feed import RunFeed
from settle.studio.layout import Facts, card, words
from settle.studio.pages import Page
from settle.studio.pages.run import sample_text
from settle.studio.visit import Visit, in_thread

INTRODUCTION = (
    "A model learns by guessing the next token of a text, seeing which one it was, and moving each of its weights a "
    "little, so that this token would have been likelier. Nobody gives it a rule. Its loss says how unsure it is "
    "on text that it does not learn from."
)
COST = (
    "Training reads every token forwards and backwards, some six operations for each weight; an answer only goes "
    "forwards, two for each weight. That is why a model is trained once and asked often."
)


class Replay(Page):
    """The replay of a run."""

    path = "/learning/{name}"
    title = "How {name} learned"
    within = "/"

    async def build(self, visit: Visit) -> None:
        run = await in_thread(Run.find, visit.path["name"])
        feed = RunFeed.of(run)
        await feed.update()
        ui.link("Back to the run", f"/runs/{quote(run.path.name)}")
        words(INTRODUCTION)
        steps = moments(feed)
        places = {}
        for step in steps:
            with card("Before the first step" if step == 0 else f"Step {step:,}"):
                places[step] = _moment(feed, step)
        plan = await in_thread(run.read, "plan.json")
        size = plan.get("num_parameters") if isinstance(plan, Mapping) else None
        with card("What it took"):
            Facts(cost_facts(feed, await in_thread(run.result), size))
            words(COST, classes="dim")

        is_read = False

        async def show_what_it_read() -> None:
            nonlocal is_read
            if not is_read:
                is_read = True  # once; the page is there before it
                found = await seen(run, steps)
                for step, place in places.items():
                    with place:
                        _read(step, found.get(str(step)))

        visit.every_tick(show_what_it_read)


def _moment(feed: RunFeed, step: int) -> ui.element:
    """Show what the run read at a step, and return its place."""
    Facts([("held-out loss", loss_then(feed, step))])
    for sample in (sample for sample in feed.samples if sample.step == step):
        words("It wrote", "h3")
        sample_text(sample)
    return ui.element("div")


def _read(step: int, read: Mapping[str, object] | None) -> None:
    if read is None:
        words("The data that were prepared for it are gone: what it read cannot be shown.", classes="dim")
    elif step:
        words(f"It was reading, from {read['origin']}", "h3")
        if read["text"]:
            words(str(read["text"]), "p", "code tall").props("tabindex=0")
        share = f"{read['passes']:.0%}".replace("%", " %")
        words(f"It had read {share} of its data before; beyond 100 %, once more.", classes="dim")


ANSWER_TOKENS = 200  # of one answer, a long paragraph
# Operations per parameter and token: forward and backward, and forward alone (Kaplan et al. 2020, section 2.1).
TRAINING_OPERATIONS, ANSWER_OPERATIONS = 6, 2
SEEN_SECONDS = 30.0
MOST_MOMENTS = 12


def moments(feed: RunFeed) -> list[int]:
    """Return steps worth looking at: the first, then each ten times as far, those with a sample, and the last."""
    last = feed.course.left.step
    tenfold = [10**power for power in range(8) if 10**power < last]
    sampled = [sample.step for sample in feed.samples]
    return sorted({0, *tenfold, *sampled, last})[-MOST_MOMENTS:]


def loss_then(feed: RunFeed, step: int) -> str:
    """Return the held-out loss of the nearest evaluation before, of which step it is, and what it means."""
    point = feed.curves["held-out"].until(step)
    if point is None:
        return ""
    loss = point.value
    choices = f"{count(round(math.exp(loss)))}" if loss < 30 else "countless"
    last = max((e.step for e in feed.course.evals if e.step <= step), default=step)
    where = "" if last == step else f" at step {last:,}, the last evaluation until then"
    return f"{loss:.3f} nats{where}: as unsure of each next token as between {choices} equally likely ones"


async def seen(run: Run, steps: Sequence[int]) -> Mapping[str, Mapping[str, object]]:
    """Return what the run read at each step; empty where the prepared data are gone, or are of no such kind."""
    arguments = [str(run.path), *map(str, steps)]
    try:
        found = await read_module("settle.jobs.seen_batch", *arguments, seconds=SEEN_SECONDS)
    except RunError:
        return {}
    return cast(Mapping[str, Mapping[str, object]], found)


def cost_facts(feed: RunFeed, result: Result | None, num_parameters: object) -> list[tuple[str, str]]:
    """Return what the training took, and what one answer takes by the same arithmetic."""
    tokens, actual = feed.course.left.tokens, (result.actual if result else {})
    seconds, joules = number(actual.get("time")) or feed.seconds, number(actual.get("energy"))
    ratio = TRAINING_OPERATIONS * tokens / (ANSWER_OPERATIONS * ANSWER_TOKENS)
    size = number(num_parameters)
    training = f"{TRAINING_OPERATIONS * size * tokens:.2g} operations" if size else ""
    answer = f"{ANSWER_OPERATIONS * size * ANSWER_TOKENS:.2g} operations" if size else ""
    return [
        ("training", " · ".join(t for t in (duration(seconds), amount(joules, "J") if joules else "", training) if t)),
        (f"one answer of {ANSWER_TOKENS} tokens", " · ".join(
            t for t in (f"{joules / ratio:.2g} J" if joules and ratio else "", answer) if t)),
        ("training is worth", f"{count(ratio)} such answers" if ratio else ""),
    ]  # fmt: skip
