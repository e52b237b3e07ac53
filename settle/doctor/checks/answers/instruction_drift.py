"""The instructions of a conversation are no longer in what the client sends."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import ConfigDict, Field

from settle.doctor.answerer import Answerer
from settle.doctor.asked_again import AskedAgain, agreement_trial, written_request
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import AskedModel
from settle.doctor.trial import Trial
from settle.wire.exchange import Request
from settle.wire.formats.openai import OpenAIFormat


class LostInstructions(Details):
    """Two exchanges of a conversation: the first has the instructions, and the second does not."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    first: int = Field(alias="with")
    later: int = Field(alias="without")

    def requests(self, subject: AskedModel) -> tuple[Request, Request]:
        """Return the requests of both."""
        exchanges = subject.chat.exchanges
        return exchanges[self.first].request, exchanges[self.later].request


class InstructionDrift(AskedAgain[LostInstructions]):
    """A client that keeps the last turns alone drops the system prompt with the first ones."""

    number: ClassVar[int] = 15
    symptom: ClassVar[str] = "after some turns it no longer keeps to its instructions"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: AskedModel) -> Iterator[Finding[LostInstructions]]:
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
        yield self.finding(
            "the client no longer sends the instructions that the conversation began with",
            f"they are in exchange {before + 1}, and in {num} later ones they are missing",
            strength=0.95,
            details=LostInstructions(first=before, later=at),
        )

    def asked_again(self, finding: Finding[LostInstructions], subject: AskedModel, answerer: Answerer) -> Trial:
        first, later = finding.details.requests(subject)
        knob, measure = "the instructions sent with every turn", "answers as the instructions make them"
        kept = later.instructed_as(first)
        return agreement_trial(knob, measure, answerer, (later, kept), wanted=kept)

    def fix(self, finding: Finding[LostInstructions], subject: AskedModel) -> Fix:
        first, later = finding.details.requests(subject)

        def write() -> str:
            out = written_request(OpenAIFormat().body(later.instructed_as(first)))
            return f"wrote {out}: the recorded request with its instructions; have the client send them with every turn"

        command = f'{{"role": "system", "content": "{first.instructions[:160]}"}}'
        return Fix("send the instructions with every turn, as the first message", command, write)


def _has_lost(one: Request, later: Request) -> bool:
    """Return whether a later request of the same conversation lacks the instructions of an earlier one."""
    if not one.instructions or later.instructions or not one.turns:
        return False
    last, *earlier = ((turn.get("role"), turn.get("content")) for turn in (one.turns[-1], *later.turns[:-1]))
    return last in earlier
