"""The first token is slow: prompts that are nearly the same differ near their start, so nothing of them is kept."""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS
from settle.doctor.subject import AskedModel
from settle.doctor.trial import LEAST_RATIO, EngineSide, Item, Trial
from settle.infer.engine import Engine
from settle.library.reference import ModelRef
from settle.wire.exchange import text_of

FEWEST_CHARACTERS = 400  # of a start that is worth keeping
ALIKE, KEPT = 0.8, 0.5  # share of two starts that is the same, and that comes before their first difference
ITEMS = 12
SHOWN = 60  # characters of what changes
LONGEST = 6000  # characters of two starts that are compared


class TwoStarts(Details):
    """The starts of two prompts, and what differs in the second."""

    first: str
    second: str
    changing: str


class ChangingStart(Check[AskedModel, TwoStarts]):
    """A time or a name at the start of a system prompt makes the whole prompt new in every request."""

    number: ClassVar[int] = 5
    symptom: ClassVar[str] = "the first token comes slowly, also where most of the prompt was sent before"
    seconds: ClassVar[float] = 0.2

    def detect(self, subject: AskedModel) -> Iterator[Finding[TwoStarts]]:
        before = [exchange.request.messages[:-1] for exchange in subject.chat.exchanges]  # the last question
        starts = ["\n".join(map(text_of, messages)) for messages in before]
        found = [at for at in range(1, len(starts)) if _is_rewritten(starts[at - 1], starts[at])]
        if not found:
            return
        first, second = starts[found[0] - 1], starts[found[0]]
        at = len(os.path.commonprefix([first, second]))
        changing = second[at : at + SHOWN]
        yield self.finding(
            "a part near the start of the prompt changes with every request",
            f"{len(found)} of {len(starts) - 1} requests begin nearly as the one before, and differ from character "
            f"{at + 1} on: {changing!r}",
            strength=0.9,
            details=TwoStarts(first=first, second=second, changing=changing),
        )

    def trial(self, finding: Finding[TwoStarts], subject: AskedModel, folder: Path) -> Trial | None:
        if subject.model is None:
            return None
        first, second = finding.details.first, finding.details.second
        questions: list[Item] = [known.question for known in KNOWN_ANSWERS]
        return Trial(
            knob="the same start in every request",
            before=_FirstToken("as it is", subject.model, (first, second)),
            after=_FirstToken("the same start", subject.model, (second, second)),
            measure="reading the second of two prompts",
            unit="ms",
            items=questions[:ITEMS],
            others=questions[ITEMS : 2 * ITEMS],
            least=LEAST_RATIO,
            timed=True,
            seconds=2.0,
        )

    def fix(self, finding: Finding[TwoStarts], subject: AskedModel) -> Fix:
        move = f"move {finding.details.changing!r} from the start of the prompt to the last message"
        return Fix("put what changes behind what does not", move)


class _FirstToken(EngineSide):
    """How long the second of two prompts takes to read. starts: of the first prompt, and of the second."""

    def __init__(self, name: str, model: ModelRef, starts: tuple[str, str]) -> None:
        super().__init__(name, model, max(map(len, starts)) + 1024)  # a token is a character at least
        self._starts = starts

    def measure(self, item: Item) -> float:
        self.held.reading_ms(_ids(self.held, self._starts[0], "Hello."))
        return self.held.reading_ms(_ids(self.held, self._starts[1], str(item)))


def _ids(engine: Engine, start: str, question: str) -> Sequence[int]:
    if engine.takes_turns:
        return engine.turns([{"role": "user", "content": f"{start}\n\n{question}"}])
    return engine.plain(f"{start}\n\n{question}")


def _is_rewritten(one: str, other: str) -> bool:
    """Return whether two starts are nearly the same, and differ near their beginning."""
    shorter = min(len(one), len(other))
    if shorter < FEWEST_CHARACTERS or len(os.path.commonprefix([one, other])) >= KEPT * shorter:
        return False
    words = one[:LONGEST].split(), other[:LONGEST].split()
    return difflib.SequenceMatcher(None, *words, autojunk=False).ratio() >= ALIKE
