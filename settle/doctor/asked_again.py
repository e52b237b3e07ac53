"""A request asked again with one thing changed: what checks of chats rest on."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from settle.base.files import write_json
from settle.doctor.answerer import Answerer
from settle.doctor.checks import Check
from settle.doctor.findings import D, Details, Finding, Fix, check_free
from settle.doctor.known_answers import KNOWN_ANSWERS, PUZZLES
from settle.doctor.subject import AskedModel
from settle.doctor.trial import Item, Side, Trial
from settle.wire.exchange import Fields, Reply, Request, fields_of
from settle.wire.formats import WireFormat
from settle.wire.formats.openai import OpenAIFormat

TOKENS = 16  # of an answer that is compared
ITEMS = 18  # questions of a proof, and as many others of the re-test: some are answered alike by chance
KEPT = 4  # known answers that conversations are made of, and that prove nothing
LEAST_SHARE = 0.5
Score = Callable[[Request, Reply], float]


class AtExchange(Details):
    """Where in a chat something was found."""

    exchange: int

    def request(self, subject: AskedModel) -> Request:
        """Return the request of that exchange."""
        return subject.chat.exchanges[self.exchange].request


class AskedAgain(Check[AskedModel, D]):
    """A failure of a chat, proven by asking again with one thing changed."""

    def trial(self, finding: Finding[D], subject: AskedModel, folder: Path) -> Trial | None:
        answerer = subject.chat.answerer
        return None if answerer is None else self.asked_again(finding, subject, answerer)

    def asked_again(self, finding: Finding[D], subject: AskedModel, answerer: Answerer) -> Trial | None:
        """Return the A/B in which `answerer` answers; None where nothing can be asked again. Raises SettleError."""
        raise NotImplementedError


class _AnsweredSide(Side):
    """A side that asks an answerer, which both sides share."""

    def __init__(self, name: str, answerer: Answerer) -> None:
        self.name, self._answerer = name, answerer
        self.num_bytes = answerer.num_bytes // 2  # both sides are one process

    def load(self) -> None:
        self._answerer.open()

    def close(self) -> None:
        self._answerer.close()


class AskingSide(_AnsweredSide):
    """A side that puts each question into a request and scores the answers.

    enough: of an answer so far, after which no more is read. guarded: a score that must not rise.
    """

    def __init__(
        self,
        name: str,
        answerer: Answerer,
        request: Request,
        score: Score,
        enough: Callable[[Reply], bool] | None = None,
        guarded: Score | None = None,
    ) -> None:
        super().__init__(name, answerer)
        self._request, self._score, self._enough, self._guarded = request, score, enough, guarded or score
        self._answers: dict[str, tuple[Request, Reply]] = {}  # by question: a guard may look at what was measured

    def measure(self, item: Item) -> float:
        return self._scored(item, self._score)

    def guard(self, item: Item) -> float:
        return self._scored(item, self._guarded)

    def _scored(self, item: Item, score: Score) -> float:
        question = str(item)
        if question not in self._answers:
            request = self._request.asking(question)
            self._answers[question] = request, self._answerer.ask(request, self._enough)
        return score(*self._answers[question])


class _AgreeingSide(_AnsweredSide):
    """1 where a question is answered in `request` as it is in `wanted`, else 0.

    Answers are the likeliest ones, so that nothing but the request decides, and each request is made once. answers: by
    request, of both sides.
    """

    def __init__(
        self, name: str, answerer: Answerer, request: Request, wanted: Request, answers: dict[str, str]
    ) -> None:
        super().__init__(name, answerer)
        self._request, self._wanted, self._answers = request, wanted, answers

    def measure(self, item: Item) -> float:
        one, wanted = (self._answer(request.asking(str(item))) for request in (self._request, self._wanted))
        return float(one == wanted)

    def _answer(self, request: Request) -> str:
        key = repr(request)
        if key not in self._answers:
            self._answers[key] = likeliest(self._answerer, request)
        return self._answers[key]


def likeliest(answerer: Answerer, request: Request) -> str:
    """Return the beginning of the likeliest answer. Raises SettleError."""
    reply = answerer.ask(request.having(temperature=0, seed=0, max_tokens=TOKENS))
    return (reply.reasoning + reply.text).strip()


def agreement_trial(
    knob: str, measure: str, answerer: Answerer, requests: Sequence[Request], wanted: Request, fix: Fix | None = None
) -> Trial:
    """Return the A/B of a changed request by how often questions are then answered as in `wanted`.

    requests: as it is and changed.
    """
    questions: list[Item] = [*(known.question for known in KNOWN_ANSWERS[:-KEPT]), *PUZZLES]
    answers: dict[str, str] = {}
    before, after = requests
    likeliest(answerer, wanted)  # it is loaded with the first
    began = time.monotonic()
    likeliest(answerer, before.asking(str(questions[2 * ITEMS])))
    seconds = time.monotonic() - began
    return Trial(
        knob=knob,
        before=_AgreeingSide("as it is", answerer, before, wanted, answers),
        after=_AgreeingSide("changed", answerer, after, wanted, answers),
        measure=measure,
        unit="of one",
        items=questions[:ITEMS],
        others=questions[ITEMS : 2 * ITEMS],
        least=LEAST_SHARE,
        lower=False,
        seconds=seconds,
        fix=fix,
    )


FILE = "request-fixed.json"


def request_fix(request: Request, setting: str, value: object) -> Fix:
    """Return the fix that sends `setting` with every request; it can write the recorded request with it."""
    changed = WireFormat.part(request.api)().changed(setting, value)
    command = setting_text(request, setting, value)

    def write() -> str:
        out = written_request(_with(request.body or OpenAIFormat().body(request), changed))
        return f"wrote {out}: the recorded request with {command}; set the same in your client"

    return Fix(f"send {command} with the request", command, write)


def written_request(body: Fields) -> Path:
    """Write a request into the current folder, and return its path. Raises UsageError."""
    out = Path.cwd() / FILE
    check_free(out)
    write_json(out, body)
    return out


def setting_text(request: Request, setting: str, value: object) -> str:
    """Return a setting as the client would write it."""
    return json.dumps(WireFormat.part(request.api)().changed(setting, value), ensure_ascii=False)[1:-1]


def _with(body: Fields, changes: Fields) -> Fields:
    """Return a body with changes in it, also in the objects that it holds."""
    changed = dict(body)
    for name, value in changes.items():
        inner = fields_of(changed.get(name))
        changed[name] = _with(inner, fields_of(value)) if inner and fields_of(value) else value
    return changed
