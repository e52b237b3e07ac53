"""Two clients ask the same of the same model and get different answers, since their requests differ."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from settle.doctor.answerer import Answerer
from settle.doctor.asked_again import AskedAgain, agreement_trial, likeliest, request_fix, setting_text
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import AskedModel
from settle.doctor.trial import Trial
from settle.wire.exchange import Change, Request

CHANCE = {"seed", "max_tokens", "stream", "logprobs"}  # settings that make no client another one
SYSTEM, TOOLS, HISTORY = "the system prompt", "the tools", "the earlier turns"


class TwoClients(Details):
    """Two exchanges that ask the same."""

    one: int
    other: int

    def requests(self, subject: AskedModel) -> tuple[Request, Request]:
        """Return the requests of both."""
        return subject.chat.exchanges[self.one].request, subject.chat.exchanges[self.other].request


class OtherClient(AskedAgain[TwoClients]):
    """Clients add a system prompt, earlier turns, tools or settings of their own, which nobody sees."""

    number: ClassVar[int] = 23
    symptom: ClassVar[str] = "another client, or another day, gives another answer to the same question"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: AskedModel) -> Iterator[Finding[TwoClients]]:
        first: dict[str, int] = {}
        for at, exchange, reply in subject.chat.answered:
            before = first.setdefault(exchange.request.question, at)
            other = subject.chat.exchanges[before]
            apart = differences(other.request, exchange.request)
            if before == at or not apart or other.reply is None or other.reply.answer == reply.answer:
                continue
            if _is_later(other.request, exchange.request):
                continue
            yield self.finding(
                f"the same question was sent with another {' and '.join(sorted(apart))[:80]}",
                f"exchanges {before + 1} and {at + 1} ask the same and were answered differently",
                strength=0.9,
                details=TwoClients(one=before, other=at),
            )
            return

    def asked_again(self, finding: Finding[TwoClients], subject: AskedModel, answerer: Answerer) -> Trial:
        one, other = finding.details.requests(subject)
        wanted = likeliest(answerer, one)
        apart = differences(other, one)
        explains = next(
            (name for name in apart if likeliest(answerer, apart[name](other)) == wanted), next(iter(apart))
        )
        return agreement_trial(
            knob=f"{explains} of the first request in the second",
            measure="answers that are the same in both clients",
            answerer=answerer,
            requests=(other, apart[explains](other)),
            wanted=one,
            fix=_fix(one, other, explains),
        )

    def fix(self, finding: Finding[TwoClients], subject: AskedModel) -> Fix:
        one, other = finding.details.requests(subject)
        return _fix(one, other, next(iter(differences(other, one))))


def differences(base: Request, wanted: Request) -> dict[str, Change]:
    """Return what differs in two requests, with the change that makes it in `base` what it is in `wanted`."""
    found: dict[str, Change] = {}
    if base.instructions != wanted.instructions:
        found[SYSTEM] = lambda request: request.instructed_as(wanted)
    if [*map(str, base.tools)] != [*map(str, wanted.tools)]:
        found[TOOLS] = lambda request: replace(request, tools=wanted.tools)
    if base.turns[:-1] != wanted.turns[:-1]:
        found[HISTORY] = lambda request: replace(request, messages=(*request.system, *wanted.turns))
    for name in sorted({*base.settings, *wanted.settings} - CHANCE):
        if base.settings.get(name) != wanted.settings.get(name):
            found[name] = lambda request, name=name: request.having(**{name: wanted.settings.get(name)})  # type: ignore[misc]
    return found


def _is_later(one: Request, other: Request) -> bool:
    """Return whether one request is the other's conversation, further on: its question was repeated."""
    turns, more = one.turns, other.turns
    return len(more) > len(turns) and more[: len(turns)] == turns


def _fix(one: Request, other: Request, name: str) -> Fix:
    if name == SYSTEM:
        text = one.instructions
        shown = f'"system": "{text[:120]}"' if text else "no system prompt"
        return Fix("set the same system prompt in both clients", shown)
    if name in (TOOLS, HISTORY):
        return Fix(f"send {name} of the first client in the other", f"{name}: as in the first request")
    value = one.settings.get(name)
    if value is None:
        return Fix(
            f"leave {name} out in the other client", f"without {setting_text(other, name, other.settings[name])}"
        )
    return request_fix(other, name, value)
