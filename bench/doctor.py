"""The doctor on failures that are known: each check's own failure in each model, and set-ups with nothing wrong.

    python bench/doctor.py smollm2 gemma3-270m [--only 6 7] [--healthy [--set-ups NAME ...]] [--out results.jsonl]

For every check that a model can have the failure of: is its cause the first finding, how long did the look take, is it
proven, did the fix hold on other items, how long did that take, and how long was it said to take. A failure that a
model cannot have (an end of turn, in one that takes no turns) is left out and named. With --healthy: the same models
as they are and in set-ups that are right, of which none may be proven and hardly one likely.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run, free_name
from settle.cli import main as main_of_settle
from settle.doctor import doctor as examining
from settle.doctor.answerer import LocalModel
from settle.doctor.checks import Check, proposed_trial
from settle.doctor.checks.answers.other_engine import PACKAGE, installed_engine
from settle.doctor.doctor import LOOK_SECONDS, check_name, checks_for, examine
from settle.doctor.find_subject import find_subject
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE
from settle.doctor.model_files import with_file
from settle.doctor.subject import AskedModel, ExportedRun, IndexedDocuments, ModelFile, Running, Subject, TrainingRun
from settle.experiment.run import prove
from settle.formats.gguf import read_gguf, write_edited
from settle.infer.engine import Engine
from settle.library.facts import read_facts, takes_turns
from settle.library.reference import ModelRef
from settle.wire.exchange import Request

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.doctor.example_run import (
    example_run,  # noqa: E402  the root of the repository is not installed
    record,  # noqa: E402
)
from tests.doctor.faults import FAULTS  # noqa: E402

# of checks that a model alone does not have; those of runs tune it themselves
SetUp = tuple[str, Callable[[], Subject]]
FAILURES = 23  # numbers up to there can be run again
SUBJECTS = (TrainingRun, AskedModel, IndexedDocuments, ExportedRun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--set-ups", nargs="*", default=[], help="of the sound ones, by name; all if none is given")
    parser.add_argument("--seconds", type=float, default=LOOK_SECONDS, help="of a look: more on a machine that is busy")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    examining.LOOK_SECONDS = asked.seconds
    rows = []
    for name in asked.models:
        subject = find_subject(name, Running())
        for row in _healthy(subject, asked.set_ups) if asked.healthy else _injected(subject, asked.only):
            rows.append({"model": name} | row)
            print(json.dumps(rows[-1]), flush=True)
            if asked.out:
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    (_show_healthy if asked.healthy else _show_injected)(rows)


def _injected(subject: ModelFile, only: list[str]) -> Iterator[dict[str, object]]:
    wanted = {check_name(text) for text in only}
    others = {
        name: part() for name, part in Check.parts().items() if part.about in SUBJECTS and part.number <= FAILURES
    }
    for name, check in {**checks_for(subject), **others}.items():
        if wanted and name not in wanted:
            continue
        row: dict[str, object] = {"check": name, "number": check.number}
        with tempfile.TemporaryDirectory() as folder:
            try:
                broken = FAULTS[name](_right_for(check, subject, Path(folder)), Path(folder))
            except SettleError as e:
                yield row | {"left_out": str(e)}
                continue
            yield row | _diagnosed(check, broken, Path(folder))


def _right_for(check: Check, subject: ModelFile, folder: Path) -> Subject:
    """Return what a check looks at with nothing wrong: the model, or what is made with it. Raises SettleError."""
    if check.about is AskedModel:
        if not takes_turns(read_gguf(subject.model.weights).metadata):
            raise UsageError("the model takes no turns", "choose one that chats")
        return _sound_answers(subject.model, folder)
    if check.about is IndexedDocuments:
        return _sound_collection(folder)
    return _exported_run(subject, subject.model) if check.about is ExportedRun else subject


def _sound_answers(model: ModelRef, folder: Path) -> Subject:
    asked = [Request(({"role": "user", "content": known.question},)) for known in KNOWN_ANSWERS[:3]]
    return _sound_chat(model, asked, folder / "sound.jsonl")


def _sound_collection(folder: Path) -> Subject:
    """Index a copy of settle's own documentation by the usual embedder; a failure is written next to the pages."""
    name, pages = f"bench-{folder.name}", folder / "docs"
    shutil.copytree(Path(__file__).parent.parent / "docs", pages)
    assert main_of_settle(["index", str(pages), "--name", name]) == 0
    return find_subject(name, Running())


def _exported_run(subject: ModelFile, model: ModelRef) -> ExportedRun:
    """Make a run that exported the model, with what the gate keeps: llama.cpp's answers then and now."""
    run = Run.create("train", free_name("bench-exported"))
    with Engine(model.weights, 512) as engine:
        prompts = [engine.tokenize(text)[:8] for text in PROSE[:6]]
        answers = [{"prompt": prompt, "answer": engine.greedy(prompt, 16)} for prompt in prompts]
    write_json(run.path / "plan.json", {"versions": {PACKAGE: installed_engine()}})
    write_json(run.path / "result.json", {"gate": {"answers": answers}})
    return ExportedRun(subject.name, run, model, running=subject.running)


def _diagnosed(check: Check, broken: Subject, folder: Path) -> dict[str, object]:
    started = time.monotonic()
    seen = examine(broken, Events())
    row: dict[str, object] = {"look_seconds": round(time.monotonic() - started, 1)}
    row["found"] = [[finding.check, round(finding.strength, 3)] for finding in seen.findings]
    row["failed"], row["no_time"] = dict(seen.failed), seen.left_out
    own = next((finding for finding in seen.findings if finding.check == check.part_name()), None)
    row["first"] = bool(seen.findings) and seen.findings[0] is own
    if own is None:
        return row
    try:
        trial = proposed_trial(own, broken, folder)
    except SettleError as e:
        return row | {"unproven": str(e)}
    if trial is None:
        return row | {"unproven": "nothing can be run again"}
    row["told_seconds"] = round(trial.expected_seconds, 1)
    proof = prove(trial, folder / "measurements.jsonl", Events())
    row |= {"state": proof.state, "verified": proof.verified, "proof_seconds": round(proof.seconds, 1)}
    return row | {"effect": proof.effect and round(proof.effect.difference.value, 3)}


def _healthy(subject: ModelFile, only: list[str]) -> Iterator[dict[str, object]]:
    """Check the model as it is, and in other set-ups that are right."""
    with tempfile.TemporaryDirectory() as folder:
        for name, make in itertools.chain(_right(subject, Path(folder)), _right_of_others(subject, Path(folder))):
            if only and name not in only:
                continue
            right = make()
            started = time.monotonic()
            seen = examine(right, Events())
            row: dict[str, object] = {"set_up": name, "look_seconds": round(time.monotonic() - started, 1)}
            states = []
            for finding in seen.findings:
                trial = proposed_trial(finding, right, Path(folder))
                record = Path(folder) / f"{finding.check}.jsonl"
                record.unlink(missing_ok=True)
                states.append([finding.check, prove(trial, record, Events()).state if trial else "likely"])
            yield row | {"findings": states, "failed": dict(seen.failed)}


def _right(subject: ModelFile, folder: Path) -> Iterator[SetUp]:
    model = subject.model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ways = {
        "cache q8_0": replace(subject.running, cache="q8_0"),
        "context 2048": replace(subject.running, context=2048),
        "a thread for each core": replace(subject.running, threads=cores),
        "context of its own": replace(subject.running, context=read_facts(model.weights).context),
        "cache bf16": replace(subject.running, cache="bf16"),
        "within 4 GB": replace(subject.running, room=4 << 30),
    }
    yield "as it is", lambda: subject
    for name, running in ways.items():
        yield name, partial(replace, subject, running=running)
    named = partial(write_edited, model.weights, folder / "named.gguf", {"general.name": "another name"})
    yield "another name, beside a copy", lambda: with_file(subject, named())


def _right_of_others(subject: ModelFile, folder: Path) -> Iterator[SetUp]:
    model = subject.model
    turns, documents = takes_turns(read_gguf(model.weights).metadata), cache(partial(_sound_collection, folder))
    yield "exported by this llama.cpp", lambda: _exported_run(subject, model)
    if turns:
        yield "its own answers", lambda: _sound_answers(model, folder)
        for name, asked in _right_requests().items():
            yield name, partial(_sound_chat, model, asked, folder / f"{name.replace(' ', '-')}.jsonl")
    yield "documents, 4 passages", documents
    if turns:
        yield "documents that it reads", lambda: replace(documents(), reader=model, answered_by=subject.name)
    yield "losses that fall", lambda: _sound_history(folder)
    yield "tuned as usual", lambda: example_run(subject, folder / "tuned", {})


def _sound_chat(model: ModelRef, asked: list[Request], path: Path) -> Subject:
    return replace(record(LocalModel(model), asked, path), model=model)


def _right_requests() -> dict[str, list[Request]]:
    """Return what clients ask that do nothing wrong."""
    questions = [known.question for known in KNOWN_ANSWERS[8:12]]
    one = [{"role": "user", "content": question} for question in questions]
    system = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
    turns: list[dict[str, object]] = [system]
    conversation = []
    for known in KNOWN_ANSWERS[8:12]:
        turns.append({"role": "user", "content": known.question})
        conversation.append(Request(tuple(turns), settings={"max_tokens": 48, "temperature": 0}))
        turns.append({"role": "assistant", "content": known.answer})
    weather = {"name": "get_weather", "description": "The weather of a city", "parameters": {"type": "object"}}
    tools = ({"type": "function", "function": weather},)
    return {
        "drawn at 0.8": [Request((turn,), settings={"temperature": 0.8, "max_tokens": 48, "seed": 3}) for turn in one],
        "instructions kept": conversation,
        "tools that nobody needs": [Request((turn,), tools, {"max_tokens": 48, "temperature": 0}) for turn in one],
        "the same start": [Request((system, turn), settings={"max_tokens": 48, "temperature": 0}) for turn in one],
    }


def _sound_history(folder: Path) -> Subject:
    """Return a history of another trainer, whose losses fall towards a floor."""
    log = [{"step": step, "loss": 1 + 3 / (1 + step / 40)} for step in range(10, 410, 10)]
    log += [{"step": step, "eval_loss": 1.1 + 3 / (1 + step / 40) + 0.01 * (-1) ** step} for step in range(20, 420, 21)]
    path = folder / "checkpoint-400" / "trainer_state.json"
    path.parent.mkdir()
    write_json(path, {"global_step": 400, "log_history": sorted(log, key=lambda entry: entry["step"])})
    return find_subject(str(path), Running())


def _show_injected(rows: list[dict[str, object]]) -> None:
    counted = [row for row in rows if "left_out" not in row]
    looks = [float(str(row["look_seconds"])) for row in counted]
    proofs = [float(str(row["proof_seconds"])) for row in counted if "proof_seconds" in row]
    print(f"{len(counted)} failures, {len(rows) - len(counted)} that a model cannot have")
    print(f"cause first: {sum(bool(row['first']) for row in counted)}")
    print(f"proven: {sum(row.get('state') == 'proven' for row in counted)}")
    print(f"fix verified: {sum(bool(row.get('verified')) for row in counted)}")
    print(f"look: median {statistics.median(looks):.0f} s, longest {max(looks):.0f} s")
    if proofs:
        print(f"proof: median {statistics.median(proofs):.0f} s, longest {max(proofs):.0f} s")


def _show_healthy(rows: list[dict[str, object]]) -> None:
    states = [state for row in rows for _, state in row["findings"]]  # type: ignore[attr-defined]
    likely = sum(state == "likely" for state in states)
    print(f"{len(rows)} set-ups: {states.count('proven')} proven, {likely} likely")


if __name__ == "__main__":
    main()
