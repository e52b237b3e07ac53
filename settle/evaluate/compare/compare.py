"""A tuned model against its base on the same rows: better or not, by how much, and what was forgotten."""

import difflib
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import AnswerChange, AnswerChanges, Listing, Progress, Say
from settle.base.files import JsonObject
from settle.base.statistics import FEWEST_FAMILIES, NO_DIFFERENT, TOO_FEW, PairedTest, in_order, paired_test
from settle.data.batches import Batch
from settle.data.layouts import Example
from settle.data.split import row_families
from settle.evaluate.compare.candidate import Candidate, Model, TimeLeft, Tokenizes, ask_in_time, on_progress
from settle.evaluate.compare.cases import Case, asking, cases, spread, text_pieces
from settle.evaluate.compare.forgetting import (
    INSTRUCTIONS,
    TEXTS,
    Forgetting,
    forgetting,
    from_texts,
    generated,
    losses,
)
from settle.evaluate.compare.sample_size import still_possible, unshown
from settle.evaluate.compare.verdict_file import Files, Goal, ScoredRows, decided, digest, write_verdict
from settle.evaluate.tasks import Task, best_suited, named
from settle.model.decoder import Decoder
from settle.model.source import Source
from settle.train.objectives import Objective

ROWS = 200  # half of a change of ten points is seen with so many
INSTRUCTION_TOKENS = 160
SHORTEST_ANSWER, LONGEST_ANSWER = 32, 512  # tokens, where no number was asked for
MOST_SHOWN = 10  # answers that changed most
COMPARED_CHARACTERS = 160  # by which answers of equal score are compared
# shares of the comparison's time for the rows, and of what is then left for what was forgotten
ROWS_SHARE, FORGETTING_SHARE = 0.6, 0.3


@dataclass(frozen=True)
class Comparison:
    """A tuned model compared with its base.

    Attributes:
        margin: of preferences, how much more the tuned model rewards the better answer; it decides where the score
            shows no difference.
    """

    base: str
    tuned: str
    measure: str
    is_share: bool
    score: PairedTest  # on the user's rows; the verdict depends on it alone
    beside: Mapping[str, PairedTest] = field(default_factory=dict)  # further scores by name
    changed: Sequence[AnswerChange] = ()
    forgot: Forgetting | None = None
    instructions: PairedTest | None = None
    cut: tuple[int, int] = (0, 0)  # answers of the base and of the tuned model that were stopped for their length
    unasked: int = 0  # rows that were too long to ask
    seconds: float = 0.0
    shortened: Sequence[str] = ()  # what there was no time for, in sentences
    margin: PairedTest | None = None
    judged_before: int = 0  # other runs that were judged on the same rows
    scored: ScoredRows | None = None  # what `score` and `margin` were computed from

    @property
    def verdict(self) -> str:
        """better, worse, no different, or too few rows to tell."""
        return decided([self.score] if self.margin is None else [self.score, self.margin])

    @property
    def headline(self) -> str:
        """The verdict, by how much, and how likely chance alone would show as much, in a sentence."""
        s, unit = self.score, " points" if self.is_share else ""
        text = {
            NO_DIFFERENT: f"{NO_DIFFERENT} from {self.base}",
            TOO_FEW: f"{TOO_FEW} ({s.families}) whether it is better than {self.base}",
        }.get(self.verdict, f"{self.verdict} than {self.base}")
        text += f": {self.measure} {_value(s.base, self.is_share)} → {_value(s.tuned, self.is_share)} on {s.rows} rows"
        difference, low, high = (_change(end, self.is_share) for end in s.difference.ends)
        text += f", {difference}{unit} (95 %: {low} to {high})"
        text += ", p < 0.001" if s.p_value < 0.001 else f", p = {s.p_value:.3f}"
        if self.margin is not None:
            ends = [_change(end, False) for end in self.margin.difference.ends]
            text += f"; reward margin {ends[0]} (95 %: {ends[1]} to {ends[2]})"
        if self.verdict in (NO_DIFFERENT, TOO_FEW):
            text += unshown(s) and f"; {unshown(s)}"
            text += f"; {still_possible(s.difference, s.rows, self.is_share, 'rows')}"
        return text

    def to_json(self) -> JsonObject:
        """Return the comparison for result.json."""
        return {
            "verdict": self.verdict,
            "headline": self.headline,
            "base": self.base,
            "tuned": self.tuned,
            "measure": self.measure,
            "score": self.score.to_json(),
            "beside": {name: score.to_json() for name, score in self.beside.items()},
            "changed": [change.model_dump() for change in self.changed],
            "forgetting": self.forgot and self.forgot.to_json(),
            "instructions": self.instructions and self.instructions.to_json(),
            "cut": {"base": self.cut[0], "tuned": self.cut[1]},
            "unasked": self.unasked,
            "seconds": round(self.seconds, 3),
            "shortened": list(self.shortened),
            "judged_before": self.judged_before,
            **({"margin": self.margin.to_json()} if self.margin is not None else {}),
        }

    def keep(self, folder: Path, base: Source, tuned: Source, goal: Goal = "better") -> Path | None:
        """Write verdict.json into a folder, by the files of both models; None where no scores of rows are known.

        goal: what a model has to be that is promoted.
        """
        if self.scored is None:
            return None
        values = {
            "goal": goal,
            "verdict": self.verdict,
            "headline": self.headline,
            "measure": self.measure,
            "forgetting": self.forgot and self.forgot.to_json(),
            "instructions": self.instructions and self.instructions.to_json(),
            "judged_before": self.judged_before,
            "rows": self.scored,
        }
        return write_verdict(folder, values, self._claims()[0], Files.of(base), Files.of(tuned))

    def rows(self) -> list[list[str]]:
        """Return measure, base, tuned, difference, 95 % interval and verdict: one line a score."""
        rows = [self._row(self.measure, self.score, self.is_share)]
        rows += [self._row("reward margin", self.margin, False)] if self.margin is not None else []
        others = dict(self.beside)
        if self.instructions is not None:
            others["instructions followed"] = self.instructions
        is_shown = any(score.is_shown for score in self._claims()[0])
        rows += [
            self._row(name, score, True)[: None if is_shown else -1] + [""] * (not is_shown)
            for name, score in others.items()
        ]
        if self.forgot is not None:
            rows.append(self._row("loss on familiar text", self.forgot.loss, False)[:-1] + [""])
            kl = self.forgot.kl
            rows.append(["KL from the base", "", _value(kl.difference.value, False), "", _interval(kl, False), ""])
        return rows

    def notes(self) -> list[str]:
        """Return what a reader of the figures should know, in sentences."""
        out = list(self.shortened)
        score = self.score
        if score.families < FEWEST_FAMILIES:
            out.append(
                f"{score.families} independent rows are too few for any verdict: give {FEWEST_FAMILIES} or more, with "
                "--rows or --rows.held-out-from"
            )
        elif score.families < score.rows:
            out.append(f"the {score.rows} rows are {score.families} families of rows that are alike, resampled whole")
        if self._claims()[1]:
            out.append(
                f"{self.measure} decides, which was chosen before any model answered; the other scores are judged only "
                "where it shows a difference, and are corrected together (Holm)"
            )
        if self.judged_before:
            runs = "1 other run was" if self.judged_before == 1 else f"{self.judged_before} other runs were"
            out.append(
                f"{runs} judged on the same rows: the best of several is partly luck, so judge the one that you keep "
                "on fresh rows, with `settle eval --rows`"
            )
        if self.forgot is not None:
            out.append(
                f"forgot {self.forgot.degree}: on {self.forgot.tokens} tokens {self.forgot.wrote}, the loss rose by "
                f"{self.forgot.loss.difference.value:+.3f} nats per token, KL {self.forgot.kl.difference.value:.3f}"
            )
        if any(self.cut):
            out.append(f"answers stopped for their length: {self.cut[0]} of {self.base}, {self.cut[1]} of {self.tuned}")
        if self.unasked:
            rows = "1 row was" if self.unasked == 1 else f"{self.unasked} rows were"
            out.append(f"{rows} too long to ask, and left out")
        return out

    def _claims(self) -> tuple[list[PairedTest], list[PairedTest]]:
        """Return the scores that decide, and the others that have a verdict."""
        others = [*self.beside.values(), self.instructions]
        return [s for s in (self.score, self.margin) if s is not None], [s for s in others if s is not None]

    def corrected(self) -> "Comparison":
        """Return the comparison with the p-values of all its claims corrected together."""
        tests = iter(in_order(*self._claims()))
        return replace(
            self,
            score=next(tests),
            margin=None if self.margin is None else next(tests),
            beside={name: next(tests) for name in self.beside},
            instructions=None if self.instructions is None else next(tests),
        )

    def shorter(self, why: str) -> "Comparison":
        """Return the comparison with one more thing that there was no time for."""
        return replace(self, shortened=(*self.shortened, why))

    def card_lines(self) -> list[str]:
        """Return lines of Markdown for the model card."""
        head = ["| | base | tuned | difference | 95 % interval | |", "|---|---|---|---|---|---|"]
        table = ["| " + " | ".join(row) + " |" for row in self.rows()]
        notes = [f"- {note[:1].upper()}{note[1:]}." for note in self.notes()]
        return [f"**{self.headline[:1].upper()}{self.headline[1:]}.**", "", *head, *table, "", *notes, ""]

    def _row(self, name: str, score: PairedTest, is_share: bool) -> list[str]:
        base, tuned = _value(score.base, is_share), _value(score.tuned, is_share)
        return [
            name, base, tuned, _change(score.difference.value, is_share), _interval(score, is_share), score.verdict,
        ]  # fmt: skip


@dataclass(frozen=True)
class CompareOptions:
    """How two candidates are compared.

    Attributes:
        seconds: that the comparison may take; it uses fewer rows where that is too little, and says so.
    """

    score: str | None = None  # by name; the one that suits the data if not given
    limit: int = ROWS  # rows at most, evenly spread
    max_tokens: int | None = None  # of an answer
    familiar: Sequence[str] | None = None  # text that the base knew; it writes some if not given
    only_rows: bool = False  # neither forgetting nor instructions
    seconds: float | None = None
    numbers: Sequence[int] | None = None  # of the rows to ask, in order, instead of `limit`


def compare(
    base: Candidate,
    tuned: Candidate,
    examples: Iterable[Example],
    events: Events,
    options: CompareOptions = CompareOptions(),  # noqa: B008 - it is frozen
    readers: tuple[Model, Model] | None = None,
    judged: Comparison | None = None,
) -> Comparison:
    """Let two candidates answer the same rows, which neither was trained on.

    judged: how they compare on the rows, where that is known already; what was forgotten is added to it.
    examples: on plain text the losses are compared. readers: the models of both, where others than
    those that answer read faster, or where the candidates cannot read. Raises DataError for rows that cannot be asked,
    UsageError for a score that is none.
    """
    began = time.perf_counter()
    time_left = TimeLeft(options.seconds)
    rows = list(examples)
    questions = cases(rows)
    if readers is None and isinstance(base, Model) and isinstance(tuned, Model):
        readers = base, tuned
    if judged is not None:
        comparison = judged
    elif questions:
        asked, families = spread(questions, options.limit), row_families(rows)
        if options.numbers is not None:
            by_number = {question.number: question for question in questions}
            asked = [by_number[number] for number in options.numbers if number in by_number]
        comparison = _answered(base, tuned, asked, families, options, events, time_left)
    elif readers is None:
        raise DataError("plain text cannot be read by these candidates", "give rows of questions and answers")
    else:
        comparison = _read(readers, rows, options.limit, events)
    if not options.only_rows and base.chats and tuned.chats:
        comparison = _instructed(comparison, (base, tuned), events, time_left)
    if not options.only_rows and readers is not None:
        if time_left.allows(FORGETTING_SHARE):
            writer = base if isinstance(base, Model) else readers[0]  # llama.cpp writes faster than it is read here
            until = time_left.share(1 / 2)
            comparison = replace(comparison, forgot=_forgotten(writer, readers, options.familiar, events, until))
        else:
            comparison = comparison.shorter("there was no time to see what was forgotten")
    return replace(comparison.corrected(), seconds=time.perf_counter() - began)


def report(comparison: Comparison, events: Events, run: str = "") -> None:
    """Show a comparison: figures, the most changed answers, and what to know about them. run: the run that keeps it."""
    columns = ["", comparison.base, comparison.tuned, "difference", "95 % interval", "verdict"]
    if comparison.changed:
        events.emit(AnswerChanges(base=comparison.base, tuned=comparison.tuned, rows=comparison.changed, run=run))
    events.emit(Listing(title="", columns=columns, rows=comparison.rows()))
    for note in comparison.notes():
        events.emit(Say(text=note))


def _answered(
    base: Candidate,
    tuned: Candidate,
    questions: list[Case],
    families: Sequence[int],
    options: CompareOptions,
    events: Events,
    time_left: TimeLeft,
) -> Comparison:
    """Score the answers of both candidates. families: of all rows, by their number."""
    task = named(options.score) if options.score else best_suited(questions)
    longest = options.max_tokens or longest_answer(base, questions)
    wanted = len(questions)
    share = ROWS_SHARE if base.chats and not options.only_rows else 1.0
    questions, answers = ask_in_time((base, tuned), questions, longest, events, time_left, share)
    fit = [i for i in range(len(questions)) if answers[0][i].asked and answers[1][i].asked]
    if not fit:
        raise DataError("no row fits into the context", "give shorter rows")
    answered = [questions[i] for i in fit]
    ours, theirs = ([a[i] for i in fit] for a in answers)

    def scored(by: Task) -> tuple[list[float], list[float]]:
        before, after = ([by.score(a.text, c) for a, c in zip(side, answered, strict=True)] for side in (ours, theirs))
        return before, after

    of_rows = [families[case.number - 1] for case in answered]

    def tested(before: list[float], after: list[float]) -> PairedTest:
        return paired_test(before, after, of_rows)

    before, after = scored(task)
    return Comparison(
        base=base.name,
        tuned=tuned.name,
        measure=task.title,
        is_share=task.is_share,
        score=tested(before, after),
        beside={by.title: tested(*scored(by)) for by in task.beside()},
        changed=most_changed(answered, [a.text for a in ours], [a.text for a in theirs], before, after),
        cut=(sum(not a.ended for a in ours), sum(not a.ended for a in theirs)),
        unasked=len(questions) - len(answered),
        shortened=([f"the time had room for {len(questions)} of {wanted} rows"] if len(questions) < wanted else []),
        scored=ScoredRows(
            sha256=digest([case.messages, case.tools, case.reference] for case in answered),
            score=options.score,
            max_tokens=longest,
            numbers=[case.number for case in answered],
            families=of_rows,
            base=before,
            tuned=after,
        ),
    )


def longest_answer(candidate: Tokenizes, questions: Sequence[Case]) -> int:
    """Return the tokens that an answer may have: half as many again as nearly all of the wanted ones."""
    lengths = sorted(len(candidate.tokenize(case.reference)) for case in questions)
    usual = lengths[min(len(lengths) - 1, len(lengths) * 19 // 20)]
    return min(max(usual * 3 // 2, SHORTEST_ANSWER), LONGEST_ANSWER)


def _read(readers: tuple[Model, Model], rows: Sequence[Example], limit: int, events: Events) -> Comparison:
    """Compare the bits that each model needs for a byte of plain text: fewer are better, so scores are negative."""
    chosen = spread(text_pieces([row.text for row in rows], row_families(rows)), limit)
    pieces = [piece for piece, _ in chosen]
    if not pieces:
        raise DataError("there is nothing to compare on", "give rows that were not trained on")
    base, tuned = readers
    before, after = (
        [-bits for bits in losses(reader, pieces, on_progress(events, f"{reader.name} reads", len(pieces)))]
        for reader in readers
    )
    families, numbers = [family for _, family in chosen], list(range(1, len(chosen) + 1))
    return Comparison(
        base=base.name,
        tuned=tuned.name,
        measure="minus bits per byte",
        is_share=False,
        score=paired_test(before, after, families),
        scored=ScoredRows(sha256=digest(pieces), numbers=numbers, families=families, base=before, tuned=after),
    )


def _forgotten(
    writer: Model,
    readers: tuple[Model, Model],
    familiar: Sequence[str] | None,
    events: Events,
    until: float | None,
) -> Forgetting:
    if familiar is None:
        text = generated(writer, on_progress(events, f"{writer.name} writes", TEXTS), until)
    else:
        text = from_texts(readers[0], familiar, "the text given")
    return forgetting(*readers, text, on_progress(events, "familiar text", len(text.texts)))


def _instructed(
    comparison: Comparison, candidates: tuple[Candidate, Candidate], events: Events, time_left: TimeLeft
) -> Comparison:
    """Add how many of our instructions each candidate follows."""
    if not time_left.allows(1 - ROWS_SHARE):
        return comparison.shorter("there was no time to see whether instructions are still followed")
    by_number = dict(enumerate(INSTRUCTIONS, 1))
    questions = [asking(instruction.prompt, number) for number, instruction in by_number.items()]
    what, wanted = "follows instructions", len(questions)
    share = 1 - FORGETTING_SHARE
    questions, answers = ask_in_time(candidates, questions, INSTRUCTION_TOKENS, events, time_left, share, what)
    followed = [
        [float(by_number[case.number].follows(a.text)) for case, a in zip(questions, side, strict=True)]
        for side in answers
    ]
    comparison = replace(comparison, instructions=paired_test(followed[0], followed[1]))
    if len(questions) == wanted:
        return comparison
    return comparison.shorter(f"the time had room for {len(questions)} of {wanted} instructions")


def most_changed(
    cases: Sequence[Case],
    base: Sequence[str],
    tuned: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    most: int = MOST_SHOWN,
) -> list[AnswerChange]:
    """Return up to `most` rows whose answers differ.

    The largest gains and the largest losses come in turns, then those of equal score whose texts are least alike.
    """
    differing = [
        AnswerChange(
            number=case.number,
            gain=new - old,
            question=case.question,
            reference=case.reference,
            base=ours,
            tuned=theirs,
        )
        for case, ours, theirs, old, new in zip(cases, base, tuned, before, after, strict=True)
        if ours.strip() != theirs.strip()
    ]
    gains = sorted((c for c in differing if c.gain > 0), key=lambda c: -c.gain)
    losses = sorted((c for c in differing if c.gain < 0), key=lambda c: c.gain)
    equal = sorted((c for c in differing if c.gain == 0), key=_likeness)
    in_turns = itertools.chain.from_iterable(itertools.zip_longest(gains, losses))
    return [c for c in (*in_turns, *equal) if c is not None][:most]


def _likeness(change: AnswerChange) -> float:
    base, tuned = change.base[:COMPARED_CHARACTERS], change.tuned[:COMPARED_CHARACTERS]
    return difflib.SequenceMatcher(None, base, tuned, autojunk=False).quick_ratio()


def _value(value: float, is_share: bool) -> str:
    return f"{100 * value:.1f} %" if is_share else f"{value:.3f}"


def _change(value: float, is_share: bool) -> str:
    return f"{100 * value:+.1f}" if is_share else f"{value:+.3f}"


def _interval(score: PairedTest, is_share: bool) -> str:
    return " to ".join(_change(end, is_share) for end in score.difference.ends[1:])


# --- preference tuning, judged by what it is for: is the better answer likelier, and by how much ---
#
# Both are read off the trained model in this process, on the very tokens that the objective counts: the base is the
# same model without its adapter. Answers are not generated, because a better answer need not be the written one.

ACCURACY, MARGIN = "preference accuracy", "reward margin"


def compare_preferences(
    model: Decoder,
    objective: Objective,
    batches: Sequence[Batch],
    names: tuple[str, str],
    events: Events,
    families: Sequence[int] | None = None,
) -> Comparison:
    """Compare the trained model with its base on held-out pairs.

    names: of the base and of the trained model. families: of the pairs of all batches, as in `paired_test`.

    Preference accuracy is the share of pairs whose better answer has the higher log-probability; the reward margin is
    the objective's own reward of the better answer less that of the worse, which is 0 for the base (arXiv:2305.18290).
    """
    base: list[float] = []
    tuned: list[float] = []
    margins: list[float] = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for number, batch in enumerate(batches, 1):
            pairs = objective.preferences(model, batch)
            base += _right(pairs.base.tolist())
            tuned += _right(pairs.tuned.tolist())
            margins += pairs.rewards.tolist()
            events.emit(Progress(what="compare pairs", done=number, total=len(batches), unit="blocks"))
    model.train(training)
    numbers = list(range(1, len(margins) + 1))
    families = numbers if families is None else families
    return Comparison(
        base=names[0],
        tuned=names[1],
        measure=ACCURACY,
        is_share=True,
        score=paired_test(base, tuned, families),
        margin=paired_test([0.0] * len(margins), margins, families),
        scored=ScoredRows(
            sha256=digest(batch.inputs.tolist() for batch in batches),
            numbers=numbers,
            families=families,
            base=base,
            tuned=tuned,
            margins=margins,
        ),
    )


def _right(gaps: Iterable[float]) -> list[float]:
    """Return 1 for a pair whose better answer is the likelier one, and 0.5 where both are equally likely."""
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
