"""A tuned model against its base on the same rows: better or not, by how much, and what was forgotten."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import AnswerChanges, Listing, Progress, Say
from settle.base.statistics import PairedTest, paired_test
from settle.data.layouts import Example
from settle.evaluate.compare.answer_changes import Changed, most_changed
from settle.evaluate.compare.candidate import Answer, Contender
from settle.evaluate.compare.cases import Case, asking, cases
from settle.evaluate.compare.forgetting import Forgetting, forgetting, generated, given, losses
from settle.evaluate.compare.instructions import INSTRUCTIONS
from settle.evaluate.tasks import Task, chosen, named

ROWS = 200  # half of a change of ten points is seen with so many
INSTRUCTION_TOKENS = 160
SHORTEST_ANSWER, LONGEST_ANSWER = 32, 512  # tokens, where no number was asked for
PIECE = 400  # characters of plain text that count as a row


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. score: on the person's rows, the verdict hangs on it alone; beside: further scores by name;
    cut: answers that were stopped for their length, of the base and of the tuned model; unasked: rows too long to ask.
    """

    base: str
    tuned: str
    measure: str
    is_share: bool
    score: PairedTest
    beside: Mapping[str, PairedTest] = field(default_factory=dict)
    changed: Sequence[Changed] = ()
    forgot: Forgetting | None = None
    instructions: PairedTest | None = None
    cut: tuple[int, int] = (0, 0)
    unasked: int = 0
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """better, no different or worse."""
        return self.score.verdict

    @property
    def headline(self) -> str:
        """The verdict by how much, with what certainty, in a sentence."""
        s, unit = self.score, " points" if self.is_share else ""
        text = (
            f"{self.verdict} than {self.base}" if self.verdict != "no different" else f"no different from {self.base}"
        )
        text += f": {self.measure} {self._value(s.base)} → {self._value(s.tuned)} on {s.rows} rows"
        difference, low, high = map(self._signed, s.difference.ends)
        text += f", {difference}{unit} (95 %: {low} to {high})"
        return text + f", certainty {certainty(s.certainty)}"

    def to_json(self) -> dict[str, Any]:
        """For result.json."""
        return {
            "verdict": self.verdict,
            "headline": self.headline,
            "base": self.base,
            "tuned": self.tuned,
            "measure": self.measure,
            "score": self.score.to_json(),
            "beside": {name: score.to_json() for name, score in self.beside.items()},
            "changed": [change.to_json() for change in self.changed],
            "forgetting": self.forgot and self.forgot.to_json(),
            "instructions": self.instructions and self.instructions.to_json(),
            "cut": {"base": self.cut[0], "tuned": self.cut[1]},
            "unasked": self.unasked,
            "seconds": round(self.seconds, 3),
        }

    def rows(self) -> list[list[str]]:
        """measure, base, tuned, difference, 95 % interval, verdict: one line a score."""
        found = [self._row(self.measure, self.score, self.is_share)]
        found += [self._row(name, score, True) for name, score in self.beside.items()]
        if self.instructions is not None:
            found.append(self._row("instructions followed", self.instructions, True))
        if self.forgot is not None:
            found.append(self._row("loss on familiar text", self.forgot.loss, False)[:-1] + [""])
            kl = self.forgot.kl
            found.append(["KL from the base", "", _number(kl.difference.value), "", _interval(kl, False), ""])
        return found

    def notes(self) -> list[str]:
        """What a reader of the figures should know, in sentences."""
        out = []
        if self.forgot is not None:
            out.append(
                f"forgot {self.forgot.degree}: on {self.forgot.tokens} tokens {self.forgot.wrote}, the loss rose by "
                f"{self.forgot.loss.difference.value:+.3f} nats per token, KL {self.forgot.kl.difference.value:.3f}"
            )
        if any(self.cut):
            out.append(
                f"{self.cut[0]} answers of {self.base} and {self.cut[1]} of {self.tuned} were stopped for their length"
            )
        if self.unasked:
            rows = "1 row was" if self.unasked == 1 else f"{self.unasked} rows were"
            out.append(f"{rows} too long to ask, and left out")
        return out

    def card_lines(self) -> list[str]:
        """Lines of Markdown for the model card."""
        head = ["| | base | tuned | difference | 95 % interval | |", "|---|---|---|---|---|---|"]
        table = ["| " + " | ".join(row) + " |" for row in self.rows()]
        notes = [f"- {note[:1].upper()}{note[1:]}." for note in self.notes()]
        return [f"**{self.headline[:1].upper()}{self.headline[1:]}.**", "", *head, *table, "", *notes, ""]

    def _row(self, name: str, score: PairedTest, is_share: bool) -> list[str]:
        shown = _share if is_share else _number
        difference = _points(score.difference.value) if is_share else f"{score.difference.value:+.3f}"
        return [name, shown(score.base), shown(score.tuned), difference, _interval(score, is_share), score.verdict]

    def _value(self, value: float) -> str:
        return _share(value) if self.is_share else _number(value)

    def _signed(self, value: float) -> str:
        return _points(value) if self.is_share else f"{value:+.3f}"


def compare(
    base: Contender,
    tuned: Contender,
    examples: Iterable[Example],
    events: Events,
    score: str | None = None,
    limit: int = ROWS,
    max_tokens: int | None = None,
    familiar: Sequence[str] | None = None,
    only_rows: bool = False,
    readers: tuple[Contender, Contender] | None = None,
) -> Comparison:
    """Let two models answer the same rows, which neither was trained on.

    examples: of plain text they are not asked but read, and its loss is compared. score: as after `--score`; None: what
    suits the data. limit: rows at most, evenly spread. familiar: text that the base knew; None: it writes some.
    only_rows: neither forgetting nor instructions. readers: base and tuned model again, where others than those that
    answer are faster at reading.
    Raises DataError for rows that cannot be asked, UsageError for a score that is none.
    """
    began = time.perf_counter()
    rows = list(examples)
    asked = cases(rows)
    readers = readers or (base, tuned)
    if asked:
        found = _answered(base, tuned, _spread(asked, limit), score, max_tokens, events)
    else:
        found = _read(readers, [row.text for row in rows], limit, events)
    if not only_rows:
        familiar_text = given(base, familiar, "the text given") if familiar is not None else None
        if familiar_text is None:
            familiar_text = generated(base, _progress(events, f"{base.name} writes", 24))
        told = _progress(events, "familiar text", len(familiar_text.texts))
        found["forgot"] = forgetting(*readers, familiar_text, told)
        if base.chats and tuned.chats:
            found["instructions"] = _instructed(base, tuned, events)
    return Comparison(base=base.name, tuned=tuned.name, seconds=time.perf_counter() - began, **found)


def tell(comparison: Comparison, events: Events) -> None:
    """The comparison as events: figures, the most changed answers, and what to know about them."""
    columns = ["", comparison.base, comparison.tuned, "difference", "95 % interval", "verdict"]
    if comparison.changed:
        rows = [change.to_json() for change in comparison.changed]
        events.emit(AnswerChanges(base=comparison.base, tuned=comparison.tuned, rows=rows))
    events.emit(Listing(title="", columns=columns, rows=comparison.rows()))
    for note in comparison.notes():
        events.emit(Say(text=note))


def _answered(
    base: Contender,
    tuned: Contender,
    asked: list[Case],
    score: str | None,
    max_tokens: int | None,
    events: Events,
) -> dict[str, Any]:
    """Both models' answers, scored."""
    task = named(score) if score else chosen(asked)
    longest = max_tokens or _longest(base, asked)
    answers = [_ask(model, asked, longest, events) for model in (base, tuned)]
    fit = [i for i in range(len(asked)) if answers[0][i].asked and answers[1][i].asked]
    if not fit:
        raise DataError("no row fits into the context", "give shorter rows")
    kept = [asked[i] for i in fit]
    ours, theirs = ([a[i] for i in fit] for a in answers)

    def scored(by: Task) -> tuple[list[float], list[float]]:
        before, after = ([by.score(a.text, c) for a, c in zip(side, kept, strict=True)] for side in (ours, theirs))
        return before, after

    before, after = scored(task)
    return {
        "measure": task.title,
        "is_share": task.is_share,
        "score": paired_test(before, after),
        "beside": {by.title: paired_test(*scored(by)) for by in task.beside()},
        "changed": most_changed(kept, [a.text for a in ours], [a.text for a in theirs], before, after),
        "cut": (sum(not a.ended for a in ours), sum(not a.ended for a in theirs)),
        "unasked": len(asked) - len(kept),
    }


def _ask(model: Contender, asked: list[Case], longest: int, events: Events) -> list[Answer]:
    prompts = [model.prompt(case) for case in asked]
    return model.answers(prompts, longest, _progress(events, f"{model.name} answers", len(prompts)))


def _longest(model: Contender, asked: list[Case]) -> int:
    """Tokens an answer may have: half as many again as nearly all of the wanted ones."""
    lengths = sorted(len(model.tokenize(case.reference)) for case in asked)
    usual = lengths[min(len(lengths) - 1, len(lengths) * 19 // 20)]
    return min(max(usual * 3 // 2, SHORTEST_ANSWER), LONGEST_ANSWER)


def _read(readers: tuple[Contender, Contender], texts: list[str], limit: int, events: Events) -> dict[str, Any]:
    """Plain text: how many bits each model needs for a byte of it. Fewer is better, so the scores are negative."""
    pieces = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    pieces = _spread([piece for piece in pieces if piece.strip()], limit)
    if not pieces:
        raise DataError("there is nothing to compare on", "give rows that were not trained on")
    scores = [
        [-bits for bits in losses(reader, pieces, _progress(events, f"{reader.name} reads", len(pieces)))]
        for reader in readers
    ]
    return {"measure": "minus bits per byte", "is_share": False, "score": paired_test(*scores)}


def _instructed(base: Contender, tuned: Contender, events: Events) -> PairedTest:
    """How many of our instructions each follows."""
    questions = [asking(instruction.prompt, number) for number, instruction in enumerate(INSTRUCTIONS, 1)]
    followed = []
    for model in (base, tuned):
        told = _progress(events, f"{model.name} follows instructions", len(questions))
        answers = model.answers([model.prompt(question) for question in questions], INSTRUCTION_TOKENS, told)
        followed.append([float(i.follows(a.text)) for i, a in zip(INSTRUCTIONS, answers, strict=True)])
    return paired_test(*followed)


def _progress(events: Events, what: str, total: int) -> Callable[[int], None]:
    return lambda done: events.emit(Progress(what=what, done=done, total=total))


def _spread(items: list[Any], number: int) -> list[Any]:
    """`number` of the items at most, evenly spread."""
    return [items[i * len(items) // number] for i in range(number)] if len(items) > number else items


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _interval(score: PairedTest, is_share: bool) -> str:
    ends = (score.difference.low, score.difference.high)
    return " to ".join(_points(end) if is_share else f"{end:+.3f}" for end in ends)


def certainty(value: float) -> str:
    """A certainty in per cent, never quite 100."""
    return "over 99.9 %" if value > 0.999 else f"{100 * value:.1f} %"
