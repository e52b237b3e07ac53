"""A run's technical file: what a person needs who has to document a model, in Markdown and in JSON.

It is laid out by what Annex XI of the EU's AI Act (Regulation 2024/1689) asks of a general-purpose model. It says what
settle measured or was told, names what it does not know, and leaves to a person what only a person can say.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from settle.audit.ledger import read_ledger
from settle.base.errors import UsageError
from settle.base.files import JsonObject, write_atomic, write_json
from settle.base.run import Run
from settle.base.version import __version__
from settle.base.words.amounts import amount
from settle.data.prepare import prepared
from settle.data.rows.prepare import prepared_rows
from settle.evaluate.compare.verdict_file import NAME as VERDICT
from settle.evaluate.report.card import card, plain
from settle.jobs.exporters import Exporter
from settle.model.families import of_plan

VERSION = 1
OPERATIONS = 6  # of a forward and a backward pass, per parameter and token (Kaplan et al. 2020, arXiv 2001.08361)
FOR_A_PERSON = (
    "the tasks that the model is meant for, and those that it must not be used for",
    "who provides it, since when, and how it is distributed",
    "its licence, and the rights to each source of the training data",
    "known risks, and what was done about bias and harmful answers",
)


class TechnicalFile(Exporter):
    """NAME-technical.md and NAME-technical.json: data, recipe, machine, energy, checks and connections."""

    def write(self, run: Run, folder: Path) -> Path:
        plan, result = run.read("plan.json"), run.read("result.json")
        if plan is None or result is None:
            raise UsageError(f"{run.name} has not ended", f"`settle resume {run.name}` takes it to its end")
        corpus = prepared(str(plan.get("corpus"))) or prepared_rows(str(plan.get("corpus")))
        data = dict(corpus.ledger) if corpus else {}
        connections = read_ledger(run.path)
        record: dict[str, Any] = {
            "version": VERSION,
            "settle": __version__,
            "run": run.name,
            "compute": _compute(plan, result),
            "plan": plan,
            "result": result,
            "data": data,
            "verdict": run.read(f"out/{VERDICT}"),
            "connections": connections and connections.to_json(),
            "for_a_person": FOR_A_PERSON,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{run.name}-technical.md"
        known = {**plan, "num_parameters": record["compute"]["parameters"]}
        lines = [card(run.name, known, result, data).rstrip(), "", *_sections(record), ""]
        write_json(path.with_suffix(".json"), record)
        write_atomic(path, "\n".join(lines))
        return path


def _compute(plan: JsonObject, result: JsonObject) -> JsonObject:
    """Return what the training took; operations as an estimate."""
    actual = result.get("actual") or {}
    shape, tokens = plan.get("architecture"), actual.get("tokens") or (result.get("best") or {}).get("tokens") or 0
    parameters = of_plan(plan["architecture_name"], shape).num_parameters if shape else 0
    energy = (result.get("forecast") or {}).get("energy") or {}
    return {
        "parameters": parameters or None,
        "operations": OPERATIONS * parameters * tokens or None,
        "seconds": actual.get("time"),
        "joules": actual.get("energy"),
        "energy_by": energy.get("source"),
        "machine": plan.get("machine"),
    }


def _sections(record: JsonObject) -> Iterator[str]:
    plan, result, compute = record["plan"], record["result"], record["compute"]
    yield from ["## Compute", ""]
    if operations := compute["operations"]:
        yield f"- About {operations:.2g} operations: {OPERATIONS} per parameter and token, an estimate."
    yield f"- Energy: {amount(compute['joules'], 'J') if compute['joules'] else 'not known'} ({compute['energy_by']})."
    yield from ["", "## Choices of the recipe", "", "| setting | why |", "|---|---|"]
    yield from (f"| {name} | {plain(why)} |" for name, why in sorted((plan.get("why") or {}).items()))
    yield from ["", "## Checks of the recipe before the first step", ""]
    yield from (_check(check) for check in result.get("proof") or ())
    yield from ["", "## What left this machine", ""]
    found = record["connections"] or {}
    yield plain(found.get("sentence") or "No ledger was kept.")
    yield from (f"- {plain(connection)}" for connection in found.get("beyond") or ())
    yield from ["", "## What is not known here", "", *_unknown(record)]
    yield from ["", "## For a person to say", "", *(f"- [ ] {what}" for what in record["for_a_person"])]


def _check(check: JsonObject) -> str:
    return f"- {'passed' if check.get('passed') else '**failed**'}: {check.get('check')} ({plain(check.get('detail'))})"


def _unknown(record: JsonObject) -> Sequence[str]:
    """Return what a reader would look for and this run did not record."""
    sources = record["data"].get("sources") or ()
    out = [] if record["data"] else ["- the data: the prepared text was removed from this machine"]
    out += [f"- the licences of the training data ({len(sources):,} files)"] if sources else []
    tuned = record["plan"].get("tuning")
    out += [f"- the data that {plain(tuned['base_name'])} was trained on: see its own documentation"] if tuned else []
    out += [] if record["verdict"] or not tuned else ["- whether it is better than its base: no comparison was made"]
    return out or ["- nothing that this file has a place for"]
