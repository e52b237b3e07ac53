"""A run, replayed: what it wrote, what it was reading, and how unsure it was, from its first step to its last."""

from collections.abc import Mapping
from urllib.parse import quote

from nicegui import ui

from settle.base.run import Run
from settle.studio.layout import Facts, card, words
from settle.studio.pages import Page
from settle.studio.runs.feed import RunFeed
from settle.studio.runs.replay import cost_facts, loss_then, moments, seen
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

    path = "/learning/{name}"
    title = "How {name} learned"

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
