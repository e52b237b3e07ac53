"""The answer is empty: the model spent all it may write on thinking, or was stopped before it wrote anything."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.doctor.answerers.asking_side import AskingSide, unchanged
from settle.doctor.answerers.puzzles import PUZZLES
from settle.doctor.checks import Check
from settle.doctor.exchanges.chat import Chat
from settle.doctor.exchanges.fix_request import request_fix, setting_text
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.wire.exchange import Reply, Request

ITEMS = 8
LEAST_SHARE = 0.5
BUDGETS = (4, 16)  # times what was allowed
UNLIMITED = 2048  # tokens: what an answer may take where a request names no limit
PROBE_SECONDS = 60.0


class EmptyAnswer(Check):
    """Thoughts of a reasoning model count as tokens of its answer, and many clients do not show them."""

    number: ClassVar[int] = 18
    symptom: ClassVar[str] = "an empty answer, or one that is cut off before it says anything"
    about: ClassVar[tuple[str, ...]] = ("chat",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.chat is not None
        empty = [(at, exchange, reply) for at, exchange, reply in subject.chat.answered if _is_spent_on_thought(reply)]
        if not empty:
            yield from self._plain(subject.chat)
            return
        at, exchange, reply = empty[0]
        num = sum(1 for _ in subject.chat.answered)
        cut = sum(reply.finish == "length" for _, _, reply in empty)
        evidence = [f"{len(empty)} of {num} answers are empty, though the model thought", _thought_text(reply)]
        if cut:
            evidence.append(f"{cut} of them ended at the limit of {_limit_text(exchange.request, reply)}")
        yield Finding(
            check=self.part_name(),
            what="the model spends its whole answer on thinking",
            evidence=tuple(evidence),
            strength=0.99 if reply.thought else 0.8,
            details={"exchange": at, "is_cut": bool(cut)},
        )

    def _plain(self, chat: Chat) -> Iterator[Finding]:
        """Answers in which there is nothing at all."""
        empty = [(at, exchange) for at, exchange, reply in chat.answered if not reply.is_answered]
        if not empty:
            return
        at, request = empty[0][0], empty[0][1].request
        stops = request.settings.get("stop")
        what = "the answer is empty, and nothing says why"
        if stops:
            what = f"the answer is empty: {str(stops)[:60]} may stop it before it begins"
        num = sum(1 for _ in chat.answered)
        seen = f"{len(empty)} of {num} answers hold neither text nor thoughts nor calls"
        yield Finding(self.part_name(), what, (seen,), 0.8 if stops else 0.6, {"exchange": at, "stops": bool(stops)})

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        assert subject.chat is not None
        answerer, request = subject.chat.answerer, _request(finding, subject)
        if answerer is None or finding.details.get("stops") is False:
            return None
        answerer.open()
        started = time.monotonic()
        answerer.ask(request, _has_begun)
        seconds = time.monotonic() - started  # of the slower side
        setting, value = _what_helps(finding, subject)

        def change(request: Request) -> Request:
            return request.having(**{setting: value})

        return Trial(
            knob=setting_text(request, setting, value),
            before=AskingSide("as it is", answerer, request, unchanged, _answered, _has_begun),
            after=AskingSide("changed", answerer, request, change, _answered, _has_begun),
            measure="answers that are not empty",
            unit="of one",
            items=PUZZLES[:ITEMS],
            others=PUZZLES[ITEMS : 2 * ITEMS],
            least=LEAST_SHARE,
            lower=False,
            seconds=seconds,
            fix=request_fix(request, setting, value),
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        request = _request(finding, subject)
        limit = _limit(request)
        if "stops" in finding.details:
            if finding.details["stops"]:
                return request_fix(request, "stop", None)
            return Fix("send the request again, and look at the server's log", "settle doctor MODEL --from FILE")
        if finding.details.get("is_cut") and limit:
            return request_fix(request, "max_tokens", limit * BUDGETS[0])
        return request_fix(request, "thinking", False)


def _is_spent_on_thought(reply: Reply) -> bool:
    """Whether nothing is left of an answer but thoughts, shown or not."""
    if reply.is_answered:
        return False
    return bool(reply.thought) or (reply.finish == "length" and bool(reply.written_tokens))


def _thought_text(reply: Reply) -> str:
    if reply.thought:
        return f"it thought {len(reply.thought.split())} words"
    return f"it wrote {reply.written_tokens} tokens that were not recorded"


def _limit(request: Request) -> int | None:
    limit = request.settings.get("max_tokens")
    return limit if isinstance(limit, int) else None


def _limit_text(request: Request, reply: Reply) -> str:
    return f"{_limit(request) or reply.written_tokens or 'its'} tokens"


def _request(finding: Finding, subject: Subject) -> Request:
    assert subject.chat is not None
    at = finding.details["exchange"]
    assert isinstance(at, int)
    return subject.chat.exchanges[at].request


def _what_helps(finding: Finding, subject: Subject) -> tuple[str, object]:
    """The one setting that the A/B changes: more room to think where that ends in an answer, else no thinking. Tried on
    the request that raised the suspicion."""
    assert subject.chat is not None and subject.chat.answerer is not None
    request = _request(finding, subject)
    if finding.details.get("stops"):
        return "stop", None
    limit = _limit(request) or UNLIMITED
    for times in BUDGETS if finding.details.get("is_cut") else ():
        reply = subject.chat.answerer.ask(request.having(max_tokens=times * limit), _has_begun, PROBE_SECONDS)
        if reply.is_answered:
            return "max_tokens", times * limit
        if reply.finish == "stop":
            break
    return "thinking", False


def _has_begun(reply: Reply) -> bool:
    return reply.is_answered


def _answered(_: Request, reply: Reply) -> float:
    return float(reply.is_answered)
