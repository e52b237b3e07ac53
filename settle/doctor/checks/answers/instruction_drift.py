"""The instructions of a conversation are no longer in what the client sends."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.base.errors import UsageError
from settle.base.files import write_json
from settle.doctor.answerers.agreement import agreement_trial
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.wire.exchange import Message, Request
from settle.wire.formats.openai import OpenAIFormat


class InstructionDrift(Check):
    """A client that keeps the last turns alone drops the system prompt with the first ones."""

    number: ClassVar[int] = 15
    symptom: ClassVar[str] = "after some turns it no longer keeps to its instructions"
    about: ClassVar[tuple[str, ...]] = ("chat",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.chat is not None
        lost = [
            (before, at)
            for at, exchange in enumerate(subject.chat.exchanges)
            for before in range(at)
            if _has_lost(subject.chat.exchanges[before].request, exchange.request)
        ]
        if not lost:
            return
        before, at = lost[0]
        num = len({later for _, later in lost})
        yield Finding(
            check=self.part_name(),
            what="the client no longer sends the instructions that the conversation began with",
            evidence=(f"they are in exchange {before + 1}, and in {num} later ones they are missing",),
            strength=0.95,
            details={"with": before, "without": at},
        )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        assert subject.chat is not None
        answerer = subject.chat.answerer
        if answerer is None:
            return None
        first, later = _requests(finding, subject)
        kept = later.instructed_as(first)
        return agreement_trial(
            knob="the instructions sent with every turn",
            measure="answers as the instructions make them",
            answerer=answerer,
            asked=later,
            change=lambda request: request.instructed_as(first),
            wanted=kept,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        first, later = _requests(finding, subject)
        out = Path.cwd() / "request-fixed.json"

        def write() -> str:
            if out.exists():
                raise UsageError(f"{out.name} is there already", "move it away, or use it")
            write_json(out, OpenAIFormat().body(later.instructed_as(first)))
            return f"wrote {out}: the recorded request with its instructions; have the client send them with every turn"

        command = f'{{"role": "system", "content": "{first.instructions[:160]}"}}'
        return Fix("send the instructions with every turn, as the first message", command, write)


def _has_lost(one: Request, later: Request) -> bool:
    """Whether a later request of the same conversation lacks the instructions of an earlier one."""
    if not one.instructions or later.instructions:
        return False
    return len(later.turns) > 1 and bool(one.turns) and any(_same(one.turns[-1], turn) for turn in later.turns[:-1])


def _same(one: Message, other: Message) -> bool:
    return one.get("role") == other.get("role") and one.get("content") == other.get("content")


def _requests(finding: Finding, subject: Subject) -> tuple[Request, Request]:
    assert subject.chat is not None
    first, later = finding.details["with"], finding.details["without"]
    assert isinstance(first, int) and isinstance(later, int)
    request = subject.chat.exchanges[later].request
    return subject.chat.exchanges[first].request, replace(request)
