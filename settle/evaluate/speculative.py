"""What a draft is worth: the same greedy answers with it and without, and how much sooner they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from settle.base.events import Events
from settle.infer.engine import Engine, Timed

DRAFT_TOKENS = (2, 3, 4, 6, 8)  # proposed at a time, of which the best is looked for
SEARCHED = 6  # prompts that the search asks


@dataclass(frozen=True)
class Pair:
    """A model with its draft, on n prompts. alone, together: tokens per second of all answers. draft_tokens: proposed
    at a time. accepted: share of the proposed that the model agreed with. differing: prompts whose answers differ, with
    the place of the first token that does. searched: tokens proposed at a time → times as fast, on a few prompts.
    """

    alone: float
    together: float
    draft_tokens: int
    accepted: float
    prompts: int
    tokens: int
    differing: tuple[tuple[int, int], ...]
    per_prompt: tuple[float, ...]
    searched: dict[int, float]

    @property
    def speed_up(self) -> float:
        return self.together / self.alone

    @property
    def headline(self) -> str:
        same = self.prompts - len(self.differing)
        return (
            f"{self.speed_up:.2f} times as fast with its draft: {self.together:.1f} tokens per second, "
            f"{self.alone:.1f} without; {self.accepted:.0%} of what it proposes, {self.draft_tokens} tokens at a time, "
            f"is right, and {same} of {self.prompts} answers are the same"
        )

    def card_lines(self) -> list[str]:
        """For the model card."""
        return [f"As a draft in llama.cpp the model it was made for is {self.headline}.", ""]

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens_per_second": {"alone": self.alone, "with_draft": self.together},
            "speed_up": self.speed_up,
            "speed_up_median": median(self.per_prompt),
            "draft_tokens": self.draft_tokens,
            "accepted": self.accepted,
            "prompts": self.prompts,
            "tokens": self.tokens,
            "identical": self.prompts - len(self.differing),
            "differing": [{"prompt": p, "token": t} for p, t in self.differing],
            "searched": {str(k): v for k, v in self.searched.items()},
        }


def measure_pair(
    model: Path,
    draft: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    events: Events,
    threads: int | None = None,
    context: int | None = None,
    draft_tokens: Sequence[int] = DRAFT_TOKENS,
) -> Pair:
    """The model's greedy answers to prompts (ids), alone and with its draft, both in llama.cpp.

    How many tokens the draft proposes at a time is chosen on the first few prompts. Raises as `Engine`.
    """
    context = context or min(4096, max(map(len, prompts)) + max_tokens + max(draft_tokens) + 8)

    def asked(which: Sequence[Sequence[int]], **with_draft: Any) -> list[Timed]:
        with Engine(model, context, threads, **with_draft) as engine:
            engine.timed(which[0], 8)  # files are read into memory
            return [engine.timed(prompt, max_tokens) for prompt in which]

    alone = asked(prompts)
    few = [i for i in range(len(prompts)) if alone[i].ids][:SEARCHED]
    searched: dict[int, float] = {}
    for number in draft_tokens if len(draft_tokens) > 1 else ():
        some = asked([prompts[i] for i in few], draft=draft, draft_tokens=number)
        searched[number] = _rate(some) / _rate([alone[i] for i in few])
        events.emit("say", text=f"proposing {number} tokens at a time: {searched[number]:.2f} times as fast")
    best = max(searched, key=searched.__getitem__) if searched else draft_tokens[0]
    together = asked(prompts, draft=draft, draft_tokens=best)
    proposed = sum(one.drafted for one in together)
    pairs = list(zip(alone, together, strict=True))
    return Pair(
        alone=_rate(alone),
        together=_rate(together),
        draft_tokens=best,
        accepted=sum(one.accepted for one in together) / max(1, proposed),
        prompts=len(prompts),
        tokens=sum(len(one.ids) for one in alone),
        differing=tuple((i, _first(a.ids, b.ids)) for i, (a, b) in enumerate(pairs) if a.ids != b.ids),
        per_prompt=tuple(_rate([b]) / _rate([a]) for a, b in pairs if a.ids and b.ids),
        searched=searched,
    )


def _rate(answers: Sequence[Timed]) -> float:
    """Tokens per second."""
    return sum(len(one.ids) for one in answers) / max(1e-9, sum(one.seconds for one in answers))


def _first(one: Sequence[int], other: Sequence[int]) -> int:
    """The first place where two answers differ."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return min(len(one), len(other)) if same is None else same
