"""A side of an A/B whose answers should be those that another request gets."""

import time

from settle.doctor.answerers import Answerer
from settle.doctor.answerers.asking_side import unchanged
from settle.doctor.answerers.puzzles import PUZZLES
from settle.doctor.findings import Fix
from settle.doctor.known_answers import KNOWN_ANSWERS
from settle.doctor.trial import Item, Side, Trial
from settle.wire.exchange import Change, Request

TOKENS = 16  # of an answer that is compared
ITEMS = 18  # questions of a proof, and as many others of the re-test: some are answered alike by chance
KEPT = 4  # known answers that conversations are made of, and that prove nothing
LEAST_SHARE = 0.5


class AgreementSide(Side):
    """Whether a question, put into `base` as `change` has it, is answered as it is in `wanted`. Answers are the
    likeliest ones, so that nothing but the request decides, and each request is made once. answers: by request, of both
    sides."""

    def __init__(
        self, name: str, answerer: Answerer, base: Request, change: Change, wanted: Request, answers: dict[str, str]
    ) -> None:
        self.name, self._answerer, self._base, self._change, self._wanted = name, answerer, base, change, wanted
        self._answers = answers
        self.num_bytes = answerer.num_bytes // 2  # both sides are one process

    def open(self) -> None:
        self._answerer.open()

    def close(self) -> None:
        self._answerer.close()

    def measure(self, item: Item) -> float:
        one, wanted = (self._answer(r.asking(str(item))) for r in (self._change(self._base), self._wanted))
        return float(one == wanted)

    def _answer(self, request: Request) -> str:
        key = repr(request)
        if key not in self._answers:
            self._answers[key] = likeliest(self._answerer, request)
        return self._answers[key]


def likeliest(answerer: Answerer, request: Request) -> str:
    """The beginning of the likeliest answer. Raises SettleError."""
    reply = answerer.ask(request.having(temperature=0, seed=0, max_tokens=TOKENS))
    return (reply.reasoning + reply.text).strip()


def agreement_trial(
    knob: str, measure: str, answerer: Answerer, asked: Request, change: Change, wanted: Request, fix: Fix | None = None
) -> Trial:
    """The A/B of a change to a request, by how often questions are then answered as in `wanted`."""
    questions = [*(known.question for known in KNOWN_ANSWERS[:-KEPT]), *PUZZLES]
    answers: dict[str, str] = {}
    likeliest(answerer, wanted)  # it is loaded with the first
    began = time.monotonic()
    likeliest(answerer, asked.asking(questions[2 * ITEMS]))
    seconds = time.monotonic() - began
    return Trial(
        knob=knob,
        before=AgreementSide("as it is", answerer, asked, unchanged, wanted, answers),
        after=AgreementSide("changed", answerer, asked, change, wanted, answers),
        measure=measure,
        unit="of one",
        items=questions[:ITEMS],
        others=questions[ITEMS : 2 * ITEMS],
        least=LEAST_SHARE,
        lower=False,
        seconds=seconds,
        fix=fix,
    )
