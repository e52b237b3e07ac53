"""A run, replayed: what it wrote, what it was reading, and how unsure it was, from its first step to its last."""

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote

from nicegui import ui

from settle.base.run import Run
from settle.studio.layout import Facts, card, words
from settle.studio.pages import Page
from settle.studio.runs.feed import RunFeed
from settle.studio.runs.replay import cost_facts, loss_then, moments, seen
from settle.studio.runs.report import result_of
from settle.studio.runs.samples import sample_text
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

    path: ClassVar[str] = "/learning/{name}"
    title: ClassVar[str] = "How {name} learned"

    async def build(self, visit: Visit) -> None:
        run = await in_thread(Run.find, visit.path["name"])
        feed = RunFeed.of(run)
        await feed.update()
        ui.link("Back to the run", f"/runs/{quote(run.path.name)}")
        words(INTRODUCTION)
        steps = moments(feed)
        read = await seen(run, steps)
        if not read:
            words("The data that were prepared for it are gone, so what it read cannot be shown.", classes="dim")
        for step in steps:
            with card("Before the first step" if step == 0 else f"Step {step:,}"):
                _moment(feed, step, read.get(str(step), {}))
        plan = await in_thread(run.read, "plan.json")
        size = plan.get("num_parameters") if isinstance(plan, Mapping) else None
        with card("What it took"):
            Facts(cost_facts(feed, await in_thread(result_of, run), size))
            words(COST, classes="dim")


def _moment(feed: RunFeed, step: int, read: Mapping[str, object]) -> None:
    passes = read.get("passes")
    about = f"{passes:.2g} times over all the data" if isinstance(passes, float) and step else ""
    Facts([("held-out loss", loss_then(feed, step)), ("has read", about)])
    for sample in (sample for sample in feed.samples if sample.step == step):
        words("It wrote", "h3")
        sample_text(sample)
    if step and read:
        words(f"It was reading, from {read['origin']}", "h3")
        if read["text"]:
            words(str(read["text"]), "p", "code tall").props("tabindex=0")
