"""Which way is enough, with the page that shows it: the cheapest that no dearer one is ahead of by more than chance.

Three cases for a dearer way that scored higher. It is shown to be better, corrected for all pairs: the cheaper one is
out. Not even a test by itself shows it: what was measured is chance as likely as not, and the cheaper one is taken. In
between nobody can tell, and more rows would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from settle.base.statistics import bootstrap_mean, share_interval
from settle.base.visible import visible_line
from settle.base.words.amounts import duration
from settle.evaluate.compare.cases import Case
from settle.experiment.race import Outcome, difference_text, may_be_ahead, range_text, value_text
from settle.jobs.choose.answerer import Failed, Measured
from settle.jobs.choose.triage import Triage
from settle.jobs.kept_work import KeptResult

LITTLE = 0.5  # score of the best way, below which the question is another one: whether any way is good enough
DIFFERING = 5  # rows that are shown
LETTERS = 300  # of a question or an answer on the page
COLUMNS = ("", "score (95 %)", "build", "an answer", "tokens", "memory", "energy", "a changed fact")


@dataclass(frozen=True)
class Verdict:
    """The way to take.

    Attributes:
        is_shown: all cheaper ones are shown to be worse than some other, and no dearer one is ahead by more than the
            margin and chance.
        more: test questions more that would decide it, None where it is decided or where hardly any number would.
    """

    chosen: int  # by its place
    is_shown: bool
    sentence: str  # for the user, as are `notes`
    notes: Sequence[str]
    more: int | None = None


def decide(outcome: Outcome, margin: float, is_share: bool) -> Verdict:
    """Decide on ways in the order of their cost, the cheapest first.

    margin: as a share of 1, or of the best score where scores are no shares.
    """
    names, means, most = outcome.names, outcome.means, max(outcome.means)
    if not any(means):
        return Verdict(0, False, "no way got any of the test questions right", ["look at the answers and the score"])
    chosen = min(outcome.left)
    dearer = [k for k in outcome.left if k > chosen]
    leads = outcome.leads(chosen, margin * (1.0 if is_share else abs(most)))
    name, value = names[chosen], value_text(means[chosen], is_share)
    little = (
        f"no way is good: the best scores {value_text(most, True)}; a larger model may do better, see `settle pick`"
    )
    weak = [little] if is_share and most < LITTLE else []
    if leads:
        best = max(leads, key=lambda k: means[k])
        pair = outcome.pair(best, chosen)
        rest = f"about {pair.more} more test questions would decide it" if pair.more else "more would hardly decide it"
        sentence = (
            f"cannot tell whether {name} is enough: it scored {value}, and {names[best]} was ahead by "
            f"{range_text(pair.difference, is_share)}; {rest}"
        )
        notes = [_note(outcome, chosen, k, is_share) for k in dearer if k != best]
        return Verdict(chosen, False, sentence, weak + notes, pair.more)
    sentence = f"take {name}: it scores {value}"
    if chosen:
        nearest = max(range(chosen), key=lambda k: means[k])
        ahead = range_text(outcome.pair(chosen, nearest).difference, is_share)
        sentence += f", ahead of {names[nearest]} by {ahead}"
    if not chosen or chosen < len(names) - 1:
        sentence += ", and nothing dearer is shown to be better"
        if dearer:
            sentence += f", but {may_be_ahead(outcome, chosen, dearer, is_share, 'test questions')}"
    return Verdict(chosen, True, sentence, weak + [_note(outcome, chosen, k, is_share) for k in dearer])


def _note(outcome: Outcome, chosen: int, other: int, is_share: bool) -> str:
    """Say what a dearer way may still be ahead by."""
    pair = outcome.pair(other, chosen)
    high, value = max(0.0, pair.difference.high), pair.difference.value
    text = f"{outcome.names[other]} costs more and may be ahead by {difference_text(high, is_share)}"
    text += f" at most ({difference_text(value, is_share)} measured)"
    if value > 0 and pair.more:
        text += f"; about {pair.more} more test questions would show as much"
    return text


# --- the result, its table and its page ---


class MeasuredWay(BaseModel):
    """What result.json has of a way."""

    name: str
    score: float
    build_seconds: float
    seconds: float  # of an answer, in the mean, as are the next two
    tokens: float
    memory: int
    joules: float
    change_seconds: float | None
    change_note: str
    cut: int
    about: str
    command: str

    @classmethod
    def of(cls, m: Measured) -> "MeasuredWay":
        return cls(
            name=m.name,
            score=m.score,
            build_seconds=m.way.build_seconds,
            seconds=m.seconds,
            tokens=m.tokens,
            memory=m.peak,
            joules=m.joules,
            change_seconds=m.way.change_seconds,
            change_note=m.way.change_note,
            cut=m.cut,
            about=m.way.about,
            command=m.way.command,
        )


class ChoiceResult(KeptResult):
    """What result.json has of a choice."""

    model: str | None
    margin: float
    train: int  # examples that ways were built from
    test: int  # questions that judged
    test_families: int
    removed: Mapping[str, int]
    labels: Sequence[str]
    seconds: float  # of the latest session
    forecast_seconds: Mapping[str, float]  # by part
    forecast_after_triage: Mapping[str, float]
    actual_seconds: Mapping[str, float]
    chosen: str
    more_rows: int | None
    command: str
    triage: Triage
    triage_agrees: bool
    ways: Sequence[MeasuredWay]
    failed: Sequence[Failed]


def rows(measured: Sequence[Measured], verdict: Verdict, families: Sequence[int], is_share: bool) -> list[list[str]]:
    """Return a row of COLUMNS for each way, the cheapest first; → marks the one to take."""
    return [
        [
            f"{'→' if k == verdict.chosen else ' '} {m.name}",
            _score(m, families, is_share),
            duration(m.way.build_seconds) if m.way.build_seconds else "–",
            f"{m.seconds:.1f} s",
            f"{m.tokens:.0f}" if m.tokens else "–",
            f"{m.peak / 1e9:.2f} GB",
            f"{m.joules:.0f} J",
            m.way.change_note or (duration(m.way.change_seconds) if m.way.change_seconds is not None else "–"),
        ]
        for k, m in enumerate(measured)
    ]


def page(
    name: str, result: ChoiceResult, table: Sequence[Sequence[str]], lines: Sequence[str], differ: Sequence[str]
) -> str:
    """Return the page, in Markdown. lines: what to know about the figures; differ: rows on which the ways differ."""
    head = [f"| {' | '.join(COLUMNS)} |", "|---|" + "---|" * (len(COLUMNS) - 1)]
    body = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table]
    out = [f"# {_cell(f'Which way for {name}')}", "", f"**{_cell(result.why)}.**", "", *head, *body, ""]
    out += [f"- {_cell(line)}" for line in lines]
    if result.audit:
        out += ["", "## What left this machine", "", _cell(str(result.audit["sentence"]))]
    out += ["", "## To make it ready", "", f"    {result.command}", "", "## Where the ways differ", ""]
    return "\n".join([*out, *differ, ""])


def differing(measured: Sequence[Measured], test: Sequence[Case]) -> list[str]:
    """Return the rows on which the scores of the ways are furthest apart, each with all answers, in Markdown."""
    spread = [max(m.scores[i] for m in measured) - min(m.scores[i] for m in measured) for i in range(len(test))]
    lines: list[str] = []
    for i in sorted(range(len(test)), key=lambda i: -spread[i])[:DIFFERING]:
        if spread[i] <= 0:
            break
        lines += [f"**{_short(test[i].question)}** wanted: {_short(test[i].reference)}", ""]
        lines += [f"- {m.name} ({m.scores[i]:g}): {_short(m.replies[i].text) or 'nothing'}" for m in measured]
        lines += [""]
    return lines or ["Nowhere: each question was answered as well by every way."]


def _score(m: Measured, families: Sequence[int], is_share: bool) -> str:
    if not is_share:
        value = bootstrap_mean(m.scores)
        return f"{value.value:.3f} ({value.low:.3f}–{value.high:.3f})"
    if set(m.scores) <= {0.0, 1.0}:
        interval = share_interval([score == 1.0 for score in m.scores], families)
    else:
        interval = bootstrap_mean(m.scores)
    return f"{100 * m.score:.0f} % ({100 * max(0.0, interval.low):.0f}–{100 * min(1.0, interval.high):.0f})"


def _short(text: str) -> str:
    line = _cell(text)
    return line if len(line) <= LETTERS else f"{line[:LETTERS]} …"


def _cell(text: str) -> str:
    """Return a text on one line, which opens no column and no markup of its own."""
    line = visible_line(" ".join(text.split()))
    return line.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
