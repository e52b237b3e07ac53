"""`settle doctor`: look for causes, prove them, and fix what is proven; and what it says of them."""

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from settle.base.amounts import num_bytes
from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, Progress, ResultReady, Say, Warn
from settle.base.registry import nearest
from settle.base.statistics import PairedTest
from settle.base.words.amounts import duration
from settle.doctor.checks import AnyCheck, Check, proposed_fix, proposed_trial
from settle.doctor.find_subject import find_subject
from settle.doctor.findings import Finding, Fix
from settle.doctor.likelihood import shared_readers
from settle.doctor.proof_folder import (
    MEASUREMENTS,
    folder_for,
    is_proof_folder,
    opened,
    read_case,
    remove_copies,
    write_case,
)
from settle.doctor.served_model import Door, is_address
from settle.doctor.subject import LoggedHistory, Running, Subject, ThisMachine
from settle.doctor.trial import Trial
from settle.experiment.run import prove
from settle.experiment.two_arms import Proof
from settle.machine.web_request import is_loopback

LOOK_SECONDS = 20.0  # after which no further check begins, but for vital ones
QUICK_SECONDS = 2.0  # checks that take less come before the vital ones, whose readers keep a file in memory


@dataclass(frozen=True)
class Examination:
    """What a look came to."""

    findings: list[Finding[Any]]  # the strongest first
    looked: list[str]  # names of the checks that could look
    failed: Mapping[str, str]  # why others could not, by name
    left_out: list[str]  # names of the checks that there was no time for


def checks_for(subject: Subject, only: Collection[str] = ()) -> dict[str, AnyCheck]:
    """Return the checks that have what they look at, by name.

    The quick ones come first, then the vital ones, then those of the subject's kind. only: names or numbers; all if
    empty.
    """
    kinds: dict[str, type[AnyCheck]] = Check.parts()
    parts = {name: part() for name, part in kinds.items()}
    wanted = {check_name(text) for text in only} or set(parts)
    fitting = [name for name, check in parts.items() if name in wanted and check.view_of(subject) is not None]

    def place(name: str) -> tuple[bool, bool, bool, float, str]:
        check = parts[name]
        is_of_kind = isinstance(subject, check.about)
        return check.seconds >= QUICK_SECONDS, not check.is_vital, not is_of_kind, check.seconds, name

    return {name: parts[name] for name in sorted(fitting, key=place)}


def check_name(text: str) -> str:
    """Return the name of the check that a user calls by its name or number. Raises UsageError."""
    parts: dict[str, type[AnyCheck]] = Check.parts()
    for name, part in parts.items():
        if text.replace("-", "_") == name or text == str(part.number):
            return name
    shown = tuple(name.replace("_", "-") for name in parts)
    raise UsageError(f"there is no check {text!r}", nearest(text, shown))


def examine(subject: Subject, events: Events, only: Collection[str] = ()) -> Examination:
    """Run the checks; name those that could not look, and those that there was no time for."""
    with shared_readers():
        return _looked(subject, events, only)


def _looked(subject: Subject, events: Events, only: Collection[str]) -> Examination:
    findings: list[Finding[Any]] = []
    looked: list[str] = []
    failed: dict[str, str] = {}
    left_out: list[str] = []
    checks, started = checks_for(subject, only), time.monotonic()
    for number, (name, check) in enumerate(checks.items()):
        if time.monotonic() - started > LOOK_SECONDS and not (check.is_vital or only):
            left_out.append(name)
            continue
        events.emit(Progress(what="looking", done=number, total=len(checks), detail=check.symptom))
        try:
            findings += check.detect(check.view_of(subject))
            looked.append(name)
        except SettleError as e:
            failed[name] = str(e)
    events.emit(Progress(what="looking", done=len(checks), total=len(checks)))
    return Examination(sorted(findings, key=lambda finding: -finding.strength), looked, failed, left_out)


FOUND = 3  # exit code: something is wrong
MORE_SAID = 1.3  # times the time that is expected, from which the longest one is said too


@dataclass(frozen=True)
class DoctorOptions:
    """What a user asks of the doctor. context, threads, cache, memory and passages: see `Running`."""

    subject: str | None
    only: Sequence[str] = ()
    prove: str | None = None  # a check by name or number, "all" for every finding, None to only look
    fix: bool = False  # what is proven
    context: int | None = None
    threads: int | None = None
    cache: str = "f16"
    transcript: Path | None = None  # a file of what was asked and answered
    memory: str | None = None
    model: str | None = None  # of a server
    key: str | None = None  # of that server
    passages: int = 4

    @property
    def running(self) -> Running:
        """How the user runs the model. Raises UsageError for text that is no size."""
        room = num_bytes(self.memory) if self.memory else None
        return Running(self.context, self.threads, self.cache, room, passages=self.passages)


class Tried(NamedTuple):
    """What an A/B came to, also in sentences, and what fixes the cause."""

    proof: Proof
    fix: Fix
    sentences: tuple[str, ...]


def doctor(asked: DoctorOptions, events: Events) -> int:
    """Return the exit code: 0 when nothing is wrong, 3 when something is or a check had no time. Raises SettleError."""
    if asked.subject is not None and is_proof_folder(Path(asked.subject)):
        return _again(Path(asked.subject), asked, events)
    if asked.subject is not None and is_address(asked.subject) and not is_loopback(asked.subject):
        host = urlsplit(asked.subject).hostname
        events.emit(Warn(text=f"what the doctor asks, and what was recorded, leaves this machine: it goes to {host}"))
    subject = find_subject(asked.subject, asked.running, asked.transcript, Door(asked.model, asked.key))
    with contextlib.closing(subject):
        return _seen_by_doctor(subject, asked, events)


def _seen_by_doctor(subject: Subject, asked: DoctorOptions, events: Events) -> int:
    """Look, prove and fix what is asked, and return the exit code."""
    wanted = check_name(asked.prove) if asked.prove and asked.prove != "all" else None
    seen = examine(subject, events, [wanted] if wanted else asked.only)
    if wanted and not seen.findings:
        why = seen.failed.get(wanted, "it found nothing, or there is nothing here that it looks at")
        raise UsageError(f"there is nothing to prove about {wanted.replace('_', ' ')}: {why}", "`settle doctor` looks")
    _show(subject, seen, events)
    tried: dict[int, Tried] = {}
    mended: dict[int, str] = {}
    for number, finding in enumerate(seen.findings if asked.prove else ()):
        trying = _prove(subject, finding, events)
        if trying is not None:
            tried[number] = trying
            if asked.fix and trying.proof.state == "proven":
                mended[number] = _mend(finding, trying, events)
    events.emit(ResultReady(result=_result(subject, seen, tried, mended)))
    left = [f for n, f in enumerate(seen.findings) if n not in tried or tried[n].proof.state != "ruled out"]
    return FOUND if left or seen.left_out else 0


def _show(subject: Subject, seen: Examination, events: Events) -> None:
    if isinstance(subject, LoggedHistory):
        events.emit(Say(text=subject.history.advice()))
    if seen.findings:
        events.emit(findings_listing(subject, seen.findings))
    elif seen.looked:
        looked, unfinished = len(seen.looked), len(seen.failed) + len(seen.left_out)
        text = f"all {looked} checks looked, and found nothing wrong"
        if unfinished:
            text = f"{looked} of {looked + unfinished} checks looked and found nothing; the others did not look"
        events.emit(Say(text=f"{subject.name}: {text}"))
    else:
        events.emit(Say(text=f"{subject.name}: no check could look at it"))
    for why in dict.fromkeys(seen.failed.values()):
        alike = ", ".join(name.replace("_", " ") for name, reason in seen.failed.items() if reason == why)
        events.emit(Warn(text=f"{alike} could not look: {why}"))
    if seen.left_out:
        names = [name.replace("_", "-") for name in seen.left_out]
        only = " ".join(f"--only {name}" for name in names)
        again = f"settle doctor {only}" if isinstance(subject, ThisMachine) else f"settle doctor {subject.name} {only}"
        events.emit(Warn(text=f"there was no time for {', '.join(names)}: `{again}` runs them, however long they take"))


def _prove(subject: Subject, finding: Finding[Any], events: Events, folder: Path | None = None) -> Tried | None:
    """Return the proof of a finding, and what fixes it; None where nothing can be run again."""
    with opened(folder or folder_for(subject, finding)) as place:
        trial = proposed_trial(finding, subject, place)
        if trial is None:
            events.emit(Say(text=f"{finding.what}: nothing can be run again to prove it, so it stays likely"))
            return None
        write_case(place, subject, finding, trial.knob, None)
        seconds, most = trial.expected_seconds, trial.most_seconds
        more = f", {duration(most)} where that does not show it" if most > MORE_SAID * seconds else ""
        events.emit(Say(text=f"proving by one change, {trial.knob}: about {duration(seconds)}{more}"))
        try:
            proof = prove(trial, place / MEASUREMENTS, events)
        except KeyboardInterrupt:
            events.emit(Say(text="what was measured is kept: the same command goes on from there"))
            raise
        finally:
            remove_copies(place)
        write_case(place, subject, finding, trial.knob, proof)
        sentences = tuple(proof_sentences(finding, trial, proof, place))
        for sentence in sentences:
            events.emit(Say(text=sentence))
        return Tried(proof, trial.fix or proposed_fix(finding, subject), sentences)


def _mend(finding: Finding[Any], tried: Tried, events: Events) -> str:
    """Write the fix of what was proven, take it back where the check finds it still, and return what became of it."""
    check: AnyCheck = Check.part(finding.check)()
    fix = tried.fix
    still: list[Finding[Any]] = []
    if not tried.proof.verified:
        why = "makes something else worse" if tried.proof.holds else "did not hold on other items"
        text = f"the fix {why}, so it is not written: {fix.command}"
    elif fix.write is None:
        text = f"only you can do this: {fix.what}: {fix.command}"
    else:
        text = fix.write()
        still = list(check.detect(fix.mended())) if fix.mended else []
        if still and fix.undo:
            fix.undo()
            text = f"taken back, since it is still so with the fix: {still[0].what}"
    events.emit(Warn(text=text) if still or not tried.proof.verified else Say(text=text))
    return text


def _again(folder: Path, asked: DoctorOptions, events: Events) -> int:
    """Run the proof of a folder again, from its first measurement, beside the earlier one."""
    case = read_case(folder)
    subject = find_subject(case.subject, case.running, case.transcript, Door(case.served, asked.key))
    with contextlib.closing(subject):
        tried = _prove(subject, case.finding, events, folder / "again")
        if tried is not None and asked.fix and tried.proof.state == "proven":
            _mend(case.finding, tried, events)
    return FOUND if tried is None or tried.proof.state != "ruled out" else 0


def _result(subject: Subject, seen: Examination, tried: dict[int, Tried], mended: dict[int, str]) -> dict[str, object]:
    found = [
        finding.to_json()
        | {"number": Check.part(finding.check).number, "state": tried[n].proof.state if n in tried else "likely"}
        | ({"proof": tried[n].proof.to_json() | {"sentences": tried[n].sentences}} if n in tried else {})
        | ({"mended": mended[n]} if n in mended else {})
        | {"fix": (tried[n].fix if n in tried else proposed_fix(finding, subject)).command}
        for n, finding in enumerate(seen.findings)
    ]
    figures = {"looked": seen.looked, "failed": dict(seen.failed), "left_out": seen.left_out}
    return {"subject": subject.name, "findings": found, **figures}


def findings_listing(subject: Subject, findings: Sequence[Finding[Any]]) -> Listing:
    """Return a table of number, cause, evidence and fix, a row for each finding."""
    rows: list[list[object]] = []
    for finding in findings:
        number, fix = Check.part(finding.check).number, proposed_fix(finding, subject)
        rows.append([number, finding.what, "; ".join(finding.evidence), fix.command])
    return Listing(
        title=subject.name,
        columns=["", "likely", "because", "fix"],
        rows=rows,
        note="likely, not proven: `--prove NUMBER` re-runs it with that one thing changed, `--prove all` each of them",
    )


def proof_sentences(finding: Finding[Any], trial: Trial, proof: Proof, folder: Path) -> Iterator[str]:
    """Yield what an A/B came to."""
    for side, why in proof.failed.items():
        yield f"{finding.what}: still only likely, since {side} could not be measured: {why}"
    if proof.effect is not None:
        yield f"{proof.state}: {finding.what}. {effect_text(trial, proof.effect)}"
    if proof.retest is not None:
        held = "holds" if proof.holds else "does not hold"
        yield f"the fix {held} on other items: {effect_text(trial, proof.retest)}"
    if proof.guards is not None and proof.harms:  # less is better there, and tests have it the other way round
        yield f"something else got worse with it: from {-proof.guards.base:.3g} to {-proof.guards.tuned:.3g}"
    yield f"every measurement is in {folder}; `settle doctor {folder}` runs it again"


def effect_text(trial: Trial, test: PairedTest) -> str:
    """Return the measure before and after the change, with the interval of the difference."""
    sign = -1.0 if trial.lower else 1.0
    before, after = sign * test.base, sign * test.tuned
    low, high = sorted((sign * test.difference.low, sign * test.difference.high))
    if trial.timed:
        ratio, ends = math.exp(after - before), (math.exp(low), math.exp(high))
        middle = f"{math.exp(before):.3g} → {math.exp(after):.3g} {trial.unit}".rstrip()
        return f"{trial.measure} {middle}, × {ratio:.2f} (95 %: {ends[0]:.2f} to {ends[1]:.2f}, {test.rows} pairs)"
    middle = f"{before:.3g} → {after:.3g} {trial.unit}".rstrip()
    return f"{trial.measure} {middle}, {after - before:+.3g} (95 %: {low:+.3g} to {high:+.3g}, {test.rows} items)"
