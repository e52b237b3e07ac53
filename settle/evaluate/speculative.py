"""What a draft is worth: the same greedy answers with it and without, and how much sooner they come."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Say
from settle.base.files import JsonObject
from settle.evaluate.gate.behaviour import first_difference
from settle.infer.child_process import Draft
from settle.infer.client import TimedAnswer
from settle.infer.engine import Engine

SEARCHED = 6  # prompts that the search asks
FEWEST = 2  # prompts that are asked however little time there is
ALONE_SHARE, SEARCH_SHARE = 0.3, 0.7  # of the time: when the model has answered alone, and when the search ends


class Proposing(NamedTuple):
    """How a draft proposes: the maximum number of tokens at a time, and the minimum probability of each.

    Reading several tokens at once costs a processor more than reading one, so unsure guesses may not be worth it.
    """

    tokens: int
    sure: float = 0.0

    def __str__(self) -> str:
        return f"up to {self.tokens} tokens" + (f" that are {self.sure:.0%} sure" if self.sure else "")


WAYS = (
    Proposing(2), Proposing(4), Proposing(6, 0.5), Proposing(6, 0.8), Proposing(12, 0.8), Proposing(16, 0.9),
    Proposing(31, 0.8),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A model with its draft, on n prompts.

    alone, together: tokens per second of all answers. way: how the draft proposed. accepted: share of the proposed that
    the model agreed with, None when nothing was. differing: prompts whose answers differ, with the place of the first
    token that does. searched: ways that were tried, and how many times as fast they were on a few prompts.
    """

    alone: float
    together: float
    way: Proposing
    accepted: float | None
    prompts: int
    tokens: int
    differing: tuple[tuple[int, int], ...]
    per_prompt: tuple[float, ...]
    searched: dict[Proposing, float]

    @property
    def speed_up(self) -> float:
        return self.together / self.alone

    @property
    def headline(self) -> str:
        same = self.prompts - len(self.differing)
        if self.accepted is None:
            right = "it is never sure enough to propose any"
        else:
            right = f"{self.accepted:.0%} of what it proposes, {self.way} at a time, is right"
        return (
            f"{self.speed_up:.2f} times as fast with its draft: {self.together:.1f} tokens per second, "
            f"{self.alone:.1f} without; "
            f"{right}, and {same} of {self.prompts} answers are the same"
        )

    def card_lines(self) -> list[str]:
        """For the model card."""
        return [f"As a draft in llama.cpp the model it was made for is {self.headline}.", ""]

    def to_json(self) -> JsonObject:
        return {
            "tokens_per_second": {"alone": self.alone, "with_draft": self.together},
            "speed_up": self.speed_up,
            "speed_up_median": median(self.per_prompt),
            "draft_tokens": self.way.tokens,
            "draft_sure": self.way.sure,
            "accepted": self.accepted,
            "prompts": self.prompts,
            "tokens": self.tokens,
            "identical": self.prompts - len(self.differing),
            "differing": [{"prompt": p, "token": t} for p, t in self.differing],
            "searched": [{**way._asdict(), "speed_up": value} for way, value in self.searched.items()],
        }


def measure_pair(
    model: Path,
    draft: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    events: Events,
    threads: int | None = None,
    context: int | None = None,
    ways: Sequence[Proposing] = WAYS,
    seconds: float | None = None,
) -> Pair:
    """Measure the model's greedy answers to prompts (ids), alone and with its draft, both in llama.cpp.

    How the draft proposes is chosen on the first few prompts, and measured on the others. seconds: what the measurement
    may take; it asks fewer prompts and tries fewer ways where that is too little, and says so. Raises DataError when
    nothing is answered, and as `Engine`.
    """
    longest = max(way.tokens for way in ways)
    context = context or min(4096, max(map(len, prompts)) + max_tokens + longest + 8)

    began = time.monotonic()

    def is_over(share: float) -> bool:
        return seconds is not None and time.monotonic() - began > share * seconds

    def timed(which: Sequence[Sequence[int]], way: Proposing | None = None, share: float = 1e9) -> list[TimedAnswer]:
        with Engine(model, context, threads, draft=Draft(draft, *way) if way else None) as engine:
            engine.timed(which[0], 8)  # files are read into memory
            answers: list[TimedAnswer] = []
            for prompt in which:
                if len(answers) >= FEWEST and is_over(share):
                    break
                answers.append(engine.timed(prompt, max_tokens))
            return answers

    alone, wanted = timed(prompts, share=ALONE_SHARE), len(prompts)
    prompts = prompts[: len(alone)]
    few = [i for i in range(len(prompts)) if len(alone[i].ids) > 1][:SEARCHED]
    if not few:
        raise DataError(f"{model.name} has nothing to say to {len(prompts)} prompts", "give prompts that it answers")
    searched: dict[Proposing, float] = {}
    for way in ways if len(ways) > 1 else ():
        if searched and is_over(SEARCH_SHARE):
            break
        searched[way] = _rate(timed([prompts[i] for i in few], way)) / _rate([alone[i] for i in few])
        events.emit(Say(text=f"proposing {way} at a time: {searched[way]:.2f} times as fast"))
    best = max(searched, key=searched.__getitem__) if searched else ways[0]
    if len(prompts) < wanted or len(searched) < len(ways) > 1:
        tried = f"{len(searched)} of {len(ways)} ways to propose"
        events.emit(Say(text=f"the time had room for {len(prompts)} of {wanted} prompts and {tried}"))
    # the best of several ways is partly luck on the prompts that chose it
    judged = [i for i in range(len(prompts)) if not searched or i not in few] or few
    prompts, alone = [prompts[i] for i in judged], [alone[i] for i in judged]
    return _pair(alone, timed(prompts, best), best, searched)


def _pair(
    alone: Sequence[TimedAnswer], together: Sequence[TimedAnswer], way: Proposing, searched: dict[Proposing, float]
) -> Pair:
    """Summarise the same prompts' answers, without the draft and with it."""
    proposed = sum(one.drafted for one in together)
    pairs = list(zip(alone, together, strict=True))
    return Pair(
        alone=_rate(alone),
        together=_rate(together),
        way=way,
        accepted=sum(one.accepted for one in together) / proposed if proposed else None,
        prompts=len(pairs),
        tokens=sum(len(one.ids) for one in alone),
        differing=tuple((i, first_difference(a.ids, b.ids)) for i, (a, b) in enumerate(pairs) if a.ids != b.ids),
        per_prompt=tuple(_rate([b]) / _rate([a]) for a, b in pairs if min(len(a.ids), len(b.ids)) > 1),
        searched=searched,
    )


def _rate(answers: Sequence[TimedAnswer]) -> float:
    """Tokens per second; the first of an answer comes with its prompt."""
    return sum(len(one.ids) - 1 for one in answers) / max(1e-9, sum(one.seconds for one in answers))
