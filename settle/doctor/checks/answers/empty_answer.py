"""The answer is empty: the model spent all it may write on thinking, or was stopped before it wrote anything."""

import time
from collections.abc import Iterator
from typing import ClassVar

from settle.doctor.answerer import Answerer
from settle.doctor.asked_again import AskedAgain, AskingSide, AtExchange, request_fix, setting_text
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import PUZZLES
from settle.doctor.subject import AskedModel, ChatRecord
from settle.doctor.trial import Trial
from settle.wire.exchange import Reply, Request

ITEMS = 8
LEAST_SHARE = 0.5
BUDGETS = (4, 16)  # times what was allowed
UNLIMITED = 2048  # tokens: what an answer may take where a request names no limit
PROBE_SECONDS = 60.0


class Emptiness(AtExchange):
    """What an answer without text shows. stops: whether a stop text may end it; None where it holds thoughts."""

    is_cut: bool = False
    stops: bool | None = None


class EmptyAnswer(AskedAgain[Emptiness]):
    """Thoughts of a reasoning model count as tokens of its answer, and many clients do not show them."""

    number: ClassVar[int] = 18
    symptom: ClassVar[str] = "an empty answer, or one that is cut off before it says anything"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: AskedModel) -> Iterator[Finding[Emptiness]]:
        empty = [(at, exchange, reply) for at, exchange, reply in subject.chat.answered if _is_spent_on_thought(reply)]
        if not empty:
            yield from self._plain(subject.chat)
            return
        at, exchange, reply = empty[0]
        num = sum(1 for _ in subject.chat.answered)
        cut = sum(reply.finish == "length" for _, _, reply in empty)
        evidence = [f"{len(empty)} of {num} answers are empty, though the model thought"]
        if reply.thought:
            evidence.append(f"it thought {len(reply.thought.split())} words")
        else:
            evidence.append(f"it wrote {reply.written_tokens} tokens that were not recorded")
        if cut:
            limit = _limit(exchange.request) or reply.written_tokens or "its"
            evidence.append(f"{cut} of them ended at the limit of {limit} tokens")
        yield self.finding(
            "the model spends its whole answer on thinking",
            *evidence,
            strength=0.99 if reply.thought else 0.8,
            details=Emptiness(exchange=at, is_cut=bool(cut)),
        )

    def _plain(self, chat: ChatRecord) -> Iterator[Finding[Emptiness]]:
        """Yield answers in which there is nothing at all."""
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
        details = Emptiness(exchange=at, stops=bool(stops))
        yield self.finding(what, seen, strength=0.8 if stops else 0.6, details=details)

    def asked_again(self, finding: Finding[Emptiness], subject: AskedModel, answerer: Answerer) -> Trial | None:
        if finding.details.stops is False:
            return None
        request = finding.details.request(subject)
        answerer.open()
        started = time.monotonic()
        answerer.ask(request, _has_begun)
        seconds = time.monotonic() - started  # of the slower side
        setting, value = _what_helps(finding.details, request, answerer)
        changed = request.having(**{setting: value})
        return Trial(
            knob=setting_text(request, setting, value),
            before=AskingSide("as it is", answerer, request, _answered, _has_begun),
            after=AskingSide("changed", answerer, changed, _answered, _has_begun),
            measure="answers that are not empty",
            unit="of one",
            items=PUZZLES[:ITEMS],
            others=PUZZLES[ITEMS : 2 * ITEMS],
            least=LEAST_SHARE,
            lower=False,
            seconds=seconds,
            fix=request_fix(request, setting, value),
        )

    def fix(self, finding: Finding[Emptiness], subject: AskedModel) -> Fix:
        found, request = finding.details, finding.details.request(subject)
        limit = _limit(request)
        if found.stops:
            return request_fix(request, "stop", None)
        if found.stops is not None:
            return Fix("send the request again, and look at the server's log", "settle doctor MODEL --from FILE")
        if found.is_cut and limit:
            return request_fix(request, "max_tokens", limit * BUDGETS[0])
        return request_fix(request, "thinking", False)


def _is_spent_on_thought(reply: Reply) -> bool:
    """Return whether nothing is left of an answer but thoughts, shown or not."""
    if reply.is_answered:
        return False
    return bool(reply.thought) or (reply.finish == "length" and bool(reply.written_tokens))


def _limit(request: Request) -> int | None:
    limit = request.settings.get("max_tokens")
    return limit if isinstance(limit, int) else None


def _what_helps(found: Emptiness, request: Request, answerer: Answerer) -> tuple[str, object]:
    """Return the one setting that the A/B changes: more room to think where that ends in an answer, else no thinking.

    It is tried on the request that raised the suspicion.
    """
    if found.stops:
        return "stop", None
    limit = _limit(request) or UNLIMITED
    for times in BUDGETS if found.is_cut else ():
        reply = answerer.ask(request.having(max_tokens=times * limit), _has_begun, PROBE_SECONDS)
        if reply.is_answered:
            return "max_tokens", times * limit
        if reply.finish == "stop":
            break
    return "thinking", False


def _has_begun(reply: Reply) -> bool:
    return reply.is_answered


def _answered(_: Request, reply: Reply) -> float:
    return float(reply.is_answered)
