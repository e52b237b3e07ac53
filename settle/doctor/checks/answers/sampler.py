"""How tokens are drawn makes answers random, or makes them go round in circles."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from settle.base.errors import EngineError
from settle.doctor.answerer import Answerer
from settle.doctor.asked_again import AskedAgain, AskingSide, AtExchange, request_fix, setting_text
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS
from settle.doctor.subject import AskedModel
from settle.doctor.trial import FEWEST_ITEMS, Trial
from settle.wire.exchange import Reply, Request


class Usual(NamedTuple):
    """The range in which a setting does no harm."""

    low: float
    high: float
    below: str  # what a value below the range makes of answers
    above: str
    sound: float  # a value that does no harm


LOOPS, RANDOM = "goes round in circles", "is random"
USUAL: Mapping[str, Usual] = {
    "temperature": Usual(0.0, 1.3, RANDOM, RANDOM, 0.7),
    "repeat_penalty": Usual(0.95, 1.3, LOOPS, RANDOM, 1.0),
    "frequency_penalty": Usual(-0.1, 1.1, LOOPS, RANDOM, 0.0),
    "presence_penalty": Usual(-0.3, 1.6, LOOPS, RANDOM, 0.0),
    "xtc_probability": Usual(0.0, 0.6, RANDOM, RANDOM, 0.0),
}
ITEMS = 10  # questions
LEAST_NATS, LEAST_REPEATED = 0.3, 0.15
TOKENS, LOOPING_TOKENS = 32, 96  # of an answer of the A/B
GRAM, FEWEST_WORDS, REPEATED = 4, 30, 0.4  # words in a row; of an answer, to tell; share said before that is a loop
HIGHEST_NATS = 3.0  # per token, of an answer that is not random


class Drawing(AtExchange):
    """The setting to blame, a sound value of it, and whether answers go round in circles rather than being random."""

    setting: str
    value: float
    loops: bool


class Sampler(AskedAgain[Drawing]):
    """A temperature or a penalty far from the usual draws tokens that the model finds unlikely, or the same ones."""

    number: ClassVar[int] = 13
    symptom: ClassVar[str] = "random words, or the same words again and again"
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: AskedModel) -> Iterator[Finding[Drawing]]:
        for at, exchange, reply in subject.chat.answered:
            for setting, value in exchange.request.settings.items():
                effect = _effect(setting, value)
                if effect:
                    usual = USUAL[setting]
                    yield self._finding(at, setting, usual.sound, effect, f"{setting} is {value}", 0.9)
                    return
            if repeated_share(reply.answer) > REPEATED:
                shown = f"{repeated_share(reply.answer):.0%} of an answer was said before in it"
                yield self._finding(at, "repeat_penalty", 1.1, LOOPS, shown, 0.7)
                return

    def _finding(
        self, at: int, setting: str, value: float, effect: str, seen: str, strength: float
    ) -> Finding[Drawing]:
        details = Drawing(exchange=at, setting=setting, value=value, loops=effect == LOOPS)
        what = f"tokens are drawn so that the answer {effect}: {setting}"
        return self.finding(what, seen, strength=strength, details=details)

    def asked_again(self, finding: Finding[Drawing], subject: AskedModel, answerer: Answerer) -> Trial:
        found, request = finding.details, finding.details.request(subject)
        setting, value, loops = found.setting, found.value, found.loops
        base = request.having(max_tokens=LOOPING_TOKENS if loops else TOKENS, logprobs=True, seed=0)
        score, guard = (_repeated, _unlikely) if loops else (_nats, _looping)
        questions = [known.question for known in KNOWN_ANSWERS]
        return Trial(
            knob=setting_text(request, setting, value),
            before=AskingSide("as it is", answerer, base, score, guarded=guard),
            after=AskingSide("changed", answerer, base.having(**{setting: value}), score, guarded=guard),
            measure="words said before" if loops else "loss of the answers",
            unit="of one" if loops else "nats per token",
            items=questions[:ITEMS],
            others=questions[ITEMS : 2 * ITEMS],
            least=LEAST_REPEATED if loops else LEAST_NATS,
            guards=questions[ITEMS : ITEMS + FEWEST_ITEMS],  # by the same answers
            seconds=3.0 if loops else 1.0,
        )

    def fix(self, finding: Finding[Drawing], subject: AskedModel) -> Fix:
        return request_fix(finding.details.request(subject), finding.details.setting, finding.details.value)


def repeated_share(text: str) -> float:
    """Return the share of words in a row that were in the text before."""
    words = text.lower().split()
    grams = [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(words) >= FEWEST_WORDS else 0.0


def _effect(setting: str, value: object) -> str:
    """Return what a value does to answers, or nothing."""
    usual = USUAL.get(setting)
    if usual is None or isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return usual.below if value < usual.low else usual.above if value > usual.high else ""


def _nats(_: Request, reply: Reply) -> float:
    """Return nats per token of what was drawn. Raises EngineError where a server gives no probabilities."""
    if not reply.logprobs:
        raise EngineError("the server gives no probabilities of what it draws", "prove it with the model's file")
    return -sum(reply.logprobs) / len(reply.logprobs)


def _repeated(_: Request, reply: Reply) -> float:
    return repeated_share(reply.text)


def _unlikely(request: Request, reply: Reply) -> float:
    return max(0.0, _nats(request, reply) - HIGHEST_NATS) if reply.logprobs else 0.0


def _looping(_: Request, reply: Reply) -> float:
    return max(0.0, repeated_share(reply.text) - REPEATED)
