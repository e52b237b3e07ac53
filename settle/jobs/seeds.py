"""Runs of one recipe that differ in their seed alone, one after the other; and two recipes by their runs."""

import re
import time
from collections.abc import Mapping, Sequence

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.settings import read_recipe
from settle.base.words.amounts import duration, number
from settle.experiment.recipes import Difference, Spread, compare
from settle.jobs.job import INTERRUPTED, find_job, resume, start
from settle.jobs.settings import TrainSettings, TuneSettings

MARK = "-seed"  # between the name of a recipe's runs and their seed


def repeat(job: str, whole: TrainSettings | TuneSettings, events: Events) -> int:
    """Run a job once for each of its seeds, and return the worst exit code.

    A seed that is finished is not run again, and one that was stopped continues. Raises SettleError.
    """
    whole.check(job)
    if "-" in whole.inputs:
        raise UsageError("standard input cannot be read once for every seed", "give a file")
    name, first = whole.name or whole.usual_name(), whole.seed
    codes, began, made = [], time.monotonic(), 0
    for place in range(whole.seeds):
        seed = first + place
        one = whole.model_copy(
            update={"seed": seed, "name": f"{name}{MARK}{seed}", "seeds": 1, "recipe": None},
        )
        is_new = (run := Run.named(str(one.name))) is None or run.result() is None
        events.emit(Say(text=f"seed {seed}, run {place + 1} of {whole.seeds}: {one.name}"))
        codes.append(_run(job, one, events))
        if codes[-1] == INTERRUPTED:
            events.emit(Say(text="the same command continues with this seed and the others"))
            return INTERRUPTED
        made += is_new
        if is_new and place + 1 < whole.seeds:
            left = (time.monotonic() - began) / made * (whole.seeds - place - 1)
            events.emit(Say(text=f"the other seeds take about {duration(left)}"))
    report(name, job, events)
    return max(codes)


def report(name: str, job: str, events: Events) -> None:
    """Show what the finished runs of a job's recipe say together. Raises RunError for fewer than two."""
    results = results_of(name)
    spreads = {figure: Spread.of(values) for figure, values in figures(list(results.values())).items()}
    rows = [
        [
            figure,
            f"{s.mean.value:.4f}",
            f"{s.mean.low:.4f} to {s.mean.high:.4f}",
            f"{s.std:.4f}",
            f"{min(s.values):.4f} to {max(s.values):.4f}",
        ]
        for figure, s in spreads.items()
    ]
    columns = ("figure", "mean", "95 % interval", "sd between seeds", "least to most")
    events.emit(Listing(title=f"{name}: {len(results)} seeds", columns=columns, rows=rows))
    for figure, s in spreads.items():
        text = (
            f"{figure}: a recipe that differs by less than {s.smallest_visible:.4f} would hardly be told from this one "
            f"with {len(results)} seeds each"
        )
        events.emit(Say(text=text))
    verdicts = [r.comparison.get("verdict") for r in results.values() if r.comparison]
    if verdicts:
        events.emit(Say(text=f"better than its base with {verdicts.count('better')} of {len(verdicts)} seeds"))
    known = {"recipe": name, "seeds": sorted(results), "verdicts": [r.verdict for r in results.values()]}
    shown = {figure: s.to_json() for figure, s in spreads.items()}
    events.emit(ResultReady(result=known | {"figures": shown, "command": job}))


def compare_recipes(names: Sequence[str], events: Events) -> int:
    """Show two recipes by the noise of their seeds. Raises UsageError for runs that were judged on different rows."""
    if len(names) != 2:
        raise UsageError("two recipes are compared", "`settle runs compare NAME NAME`, each run with --seeds 3 or more")
    one, other = names
    if one == other:
        raise UsageError(f"{one} is compared with itself", "name two recipes")
    corpora = {name: {str((run.read("plan.json") or {}).get("corpus")) for run in _runs(name)} for name in names}
    both = [results_of(name) for name in names]
    if len(corpora[one] | corpora[other]) > 1:
        fix = "run both on the same data with the same tokenizer, so that the same held-out rows judge them"
        raise UsageError(f"{one} and {other} were judged on different data", fix)
    ours, theirs = (figures(list(results.values())) for results in both)
    found = {f: compare(Spread.of(ours[f]), Spread.of(theirs[f])) for f in ours if f in theirs}
    rows = []
    for figure, difference in found.items():
        means = [f"{sum(v[figure]) / len(v[figure]):.4f}" for v in (ours, theirs)]
        d = difference.difference
        rows.append([figure, *means, f"{d.value:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", f"{difference.p_value:.3g}"])
    columns = ("figure", one, other, "difference", "95 % interval", "p")
    events.emit(Listing(title="by the noise of their seeds", columns=columns, rows=rows))
    for figure, difference in found.items():
        events.emit(Say(text=_sentence(figure, one, other, difference)))
    events.emit(ResultReady(result={"recipes": [one, other], "figures": {f: d.to_json() for f, d in found.items()}}))
    return 0


def results_of(name: str) -> dict[int, Result]:
    """Return the results of a recipe's finished runs, by seed. Raises RunError for fewer than two."""
    found = {_seed(run): result for run in _runs(name) if (result := run.result())}
    if len(found) < 2:
        raise RunError(f"{len(found)} finished runs of {name} differ in their seed alone", "run it with --seeds 3")
    return dict(sorted(found.items()))


def figures(results: Sequence[Result]) -> dict[str, list[float]]:
    """Return what all runs have a number for: the loss that was delivered, and the score of a tuned model."""
    found: dict[str, list[float]] = {}
    for result in results:
        comparison = result.comparison or {}
        score = comparison.get("score")
        tuned = score.get("tuned") if isinstance(score, Mapping) else None
        loss = result.best.loss if result.best else None
        named = {"held-out loss": loss, str(comparison.get("measure", "score")): tuned}
        for name, value in named.items():
            if (known := number(value)) is not None:
                found.setdefault(name, []).append(known)
    return {name: values for name, values in found.items() if len(values) == len(results)}


def _run(job: str, settings: TrainSettings | TuneSettings, events: Events) -> int:
    """Begin, continue or read the run of that name. Raises UsageError where another recipe made it."""
    run = Run.named(str(settings.name))
    if run is None:
        return start(find_job(job), settings, events).exit_code or 0
    recipe = run.path / "recipe.toml"
    if not recipe.is_file() or read_recipe(recipe) != settings.to_recipe():
        raise UsageError(f"{run.name} was made by another recipe", "give the runs another name with --name")
    result = run.result()
    is_done = result is not None and not getattr(settings, "refit", False)  # a refit may have been stopped
    return result.exit_code if result is not None and is_done else resume(run.name, events)


def _runs(name: str) -> list[Run]:
    return [run for run in Run.all() if re.fullmatch(re.escape(name + MARK) + r"\d+", run.name)]


def _seed(run: Run) -> int:
    return int(run.name.rpartition(MARK)[2])


def _sentence(figure: str, one: str, other: str, difference: Difference) -> str:
    d = difference.difference
    if difference.is_shown:
        which = "lower" if d.value < 0 else "higher"
        by = f"{abs(d.value):.4f} (p = {difference.p_value:.2g})"
        return f"{figure}: that of {other} is {which} than that of {one} by {by}"
    return (
        f"{figure}: {one} and {other} are no different beside the noise of their seeds (p = {difference.p_value:.2g}); "
        f"a difference of {difference.visible:.4f} would be seen in four cases of five"
    )
