"""The look: every check that has something to look at, in seconds, and what it found, the likeliest first."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.registry import nearest
from settle.doctor.checks import AnyCheck, Check
from settle.doctor.findings import Finding
from settle.doctor.likelihood import shared_readers
from settle.doctor.subject import Subject

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
