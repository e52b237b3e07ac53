"""What was measured on one page: a table with intervals, what each way costs, rows on which they differ."""

from collections.abc import Mapping, Sequence

from settle.base.statistics import bootstrap_mean, share_interval
from settle.base.visible import visible_line
from settle.base.words.amounts import duration
from settle.evaluate.compare.cases import Case
from settle.experiment.race import Outcome
from settle.experiment.report import pairs_json
from settle.jobs.choose.triage import Triage
from settle.jobs.choose.verdict import Verdict
from settle.jobs.choose.way import Failed, Measured

DIFFERING = 5  # rows that are shown
LETTERS = 300  # of a question or an answer on the page
COLUMNS = ("", "score (95 %)", "build", "an answer", "tokens", "memory", "energy", "a changed fact")


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


def to_json(
    measured: Sequence[Measured],
    failed: Sequence[Failed],
    outcome: Outcome,
    verdict: Verdict,
    triage: Triage,
    about: Mapping[str, object],
) -> dict[str, object]:
    """Return all figures, for result.json."""
    chosen = measured[verdict.chosen]
    return {
        **about,
        "chosen": chosen.name,
        "verdict": "take" if verdict.is_shown else "cannot tell",
        "why": verdict.sentence + _unknown(failed),
        "notes": list(verdict.notes),
        "more_rows": verdict.more,
        "command": chosen.way.command,
        "triage": triage.to_json(),
        "triage_agrees": triage.prediction == chosen.name,
        "ways": [
            {
                "name": m.name,
                "score": m.score,
                "build_seconds": m.way.build_seconds,
                "seconds": m.seconds,
                "tokens": m.tokens,
                "memory": m.peak,
                "joules": m.joules,
                "change_seconds": m.way.change_seconds,
                "change_note": m.way.change_note,
                "cut": m.cut,
                "about": m.way.about,
                "command": m.way.command,
            }
            for m in measured
        ],
        "failed": [vars(f) for f in failed],
        "pairs": pairs_json(outcome, "rows"),
    }


def _unknown(failed: Sequence[Failed]) -> str:
    """Say what the verdict knows nothing of."""
    names = " and ".join(f.name for f in failed)
    return f"; nothing is known of {names}, which could not be measured" if failed else ""


def page(
    title: str,
    table: Sequence[Sequence[str]],
    result: Mapping[str, object],
    lines: Sequence[str],
    differ: Sequence[str],
) -> str:
    """Return the page, in Markdown. lines: what to know about the figures; differ: rows on which the ways differ."""
    head = [f"| {' | '.join(COLUMNS)} |", "|---|" + "---|" * (len(COLUMNS) - 1)]
    body = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table]
    out = [f"# {_cell(title)}", "", f"**{_cell(str(result['why']))}.**", "", *head, *body, ""]
    out += [f"- {_cell(line)}" for line in lines]
    audit = result.get("audit")
    if isinstance(audit, Mapping) and audit:
        out += ["", "## What left this machine", "", _cell(str(audit["sentence"]))]
    out += ["", "## To make it ready", "", f"    {result['command']}", "", "## Where the ways differ", ""]
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
