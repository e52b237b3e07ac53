"""Stages that only a decision model has: its rows, what it answers untrained, its temperatures and its verdict."""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from settle.base.errors import UsageError
from settle.base.events import Progress, Say, Warn
from settle.base.files import write_json
from settle.base.statistics import NO_DIFFERENT, TOO_FEW, VERDICT_P, PairedTest, holm, paired_test
from settle.data.decisions.corpus import DecisionCorpus, open_decisions, prepare_decisions
from settle.data.decisions.encode import DecisionEncoder
from settle.data.decisions.prompt import DECISION_TYPE
from settle.data.decisions.rows import DecisionRow
from settle.data.decisions.temperature import divergences
from settle.data.files import stored_corpus
from settle.evaluate.calibration import CalibrationReport, brier
from settle.evaluate.compare.sample_size import smallest_visible, unshown
from settle.evaluate.decisions import ORDERS, Scored, order_changes, score_rows
from settle.jobs.settings import TuneSettings
from settle.jobs.training_stages import restored_data
from settle.jobs.tuning_stages import TuningContext
from settle.library.pretrained import open_pretrained
from settle.train.live_run import open_base
from settle.train.objectives.decision import Decision

FEW = 5  # rows of a class below which hardly anything is learned of it
ORDERED_ROWS = 100  # held-out rows that are asked in other orders, at most
ZERO_SHOT = "zero_shot.npz"


@dataclass
class DecisionContext(TuningContext):
    """untrained: what the base says on the held-out rows, with the temperature that suits it."""

    settings: TuneSettings
    corpus: DecisionCorpus = field(init=False)

    @property
    def decision(self) -> Decision:
        assert isinstance(self.live.objective, Decision)
        return self.live.objective

    @property
    def encoder(self) -> DecisionEncoder:
        return DecisionEncoder(self.live.tokenizer, self.corpus.prompt, self.corpus.labels)

    def next_steps(self) -> str:
        if not self.is_usable:
            return ""
        name = self.run.name
        return f'`settle decide {name} "some text"` · `settle serve` · `settle runs show {name}`'

    def comparison_estimate(self, seconds_per_token: float) -> float:
        held_out = self.corpus.held_out
        asked = held_out.num_inputs * (1 + (ORDERS + 1) * min(1.0, ORDERED_ROWS / held_out.num_rows))
        return seconds_per_token * float(asked + self.corpus.calibration.num_inputs)


def base(c: DecisionContext) -> None:
    """The model that is tuned. Settings that mean nothing here are refused."""
    for name in ("score", "sample"):
        if getattr(c.settings, name) is not None:
            raise UsageError(f"--{name} is for models that write", "leave it out: decisions are scored as they are")
    c.base = open_base(c.tuning) if c.record is not None else open_pretrained(c.settings.model)


def data(c: DecisionContext) -> None:
    """Labelled rows on four sides; what they can and cannot show is said before anything runs."""
    if c.record is not None and restored_data(c, stored_corpus(str(c.record["corpus"]), open_decisions)):
        return
    assert c.base is not None
    context = c.base.part.max_position_embeddings
    rows = c.settings.rows.model_copy(update={"max_tokens": min(c.settings.rows.max_tokens or context, context)})
    asked = Decision.model_validate(c.settings.objective.settings)
    c.corpus = prepare_decisions(c.settings.inputs, c.base.tokenizer, rows, asked.question, asked.shuffle)
    labels = c.settings.objective.over({"labels": list(c.corpus.labels.values())})
    c.settings = c.settings.model_copy(update={"objective": labels})
    _describe(c)


def _describe(c: DecisionContext) -> None:
    corpus, ledger = c.corpus, c.corpus.ledger
    uses = ("to train on", "to choose the weights by", "to fit the temperatures", "to judge")
    stores = (corpus.train, corpus.selection, corpus.calibration, corpus.held_out)
    sides = [f"{store.num_rows:,} {use}" for store, use in zip(stores, uses, strict=True)]
    c.events.emit(Say(text=f"rows: {', '.join(sides)}"))
    for name, counted in ledger["classes"].items():
        shown = ", ".join(f"{key} {number}" for key, number in list(counted.items())[:8])
        more = f" and {len(counted) - 8} more" if len(counted) > 8 else ""
        c.events.emit(Say(text=f"{name!r}: {shown}{more}"))
        if rare := [key for key, number in counted.items() if number < FEW]:
            few = (
                f"{len(rare)} of {len(counted)} classes of {name!r} have fewer than {FEW} rows ({', '.join(rare[:5])})"
            )
            c.events.emit(Warn(text=f"{few}: hardly anything is learned of them; give more rows or group them"))
    if number := ledger["contradictions"]:
        text = f"{number} texts have different answers in different rows: the model learns their shares"
        c.events.emit(Warn(text=f"{text}; correct the labels if only one is right"))
    judged = corpus.held_out.num_rows
    visible = smallest_visible(judged, VERDICT_P)
    if visible is None:
        text = f"{judged} rows judge the result, too few to show any difference; give more rows"
        c.events.emit(Warn(text=text))
    else:
        c.events.emit(Say(text=f"{judged} rows judge the result: a difference of {visible:.0%} or more will be seen"))


def zero_shot(c: DecisionContext) -> None:
    """What the base answers, before it is trained."""
    if c.record is not None:
        return
    fitting, judging = (
        score_rows(c.live.model, c.decision, c.encoder, c.corpus.rows(side)) for side in ("calibration", "held_out")
    )
    np.savez(c.run.path / ZERO_SHOT, fitting=fitting.scores, targets=fitting.targets, judging=judging.scores)


def calibrate(c: DecisionContext) -> None:
    """The temperatures, on rows of their own; then the judgement, on rows that chose and fitted nothing."""
    if not c.is_usable:
        return
    corpus, model = c.corpus, c.live.model
    model.load_trainable(c.outcome.best)
    fitting, judging = corpus.rows("calibration"), corpus.rows("held_out")
    temperatures = score_rows(model, c.decision, c.encoder, fitting).temperatures()
    scored = score_rows(model, c.decision, c.encoder, judging)
    families = corpus.held_out.families.tolist()
    shares = scored.probabilities(temperatures)
    _quote_loss(c, shares, scored.targets)
    report = CalibrationReport.of(shares, scored.targets, families)
    untrained = _untrained(c, fitting, scored)
    majority = _majority(corpus.rows("train"), judging, scored.targets.shape[1])
    changes = order_changes(
        model, c.decision, c.encoder, judging[:ORDERED_ROWS],
        lambda done, total: c.events.emit(Progress(what="orders", done=done, total=total, unit="rows")),
    )  # fmt: skip
    right = _right(shares, scored.targets)
    against = {"zero-shot": untrained, "majority class": majority}
    tests = holm([paired_test(_right(other, scored.targets), right, families) for other in against.values()])
    c.figures["comparison"] = _comparison(dict(zip(against, tests, strict=True)))
    baselines = {
        name: {"accuracy": test.base, "brier": brier(other, scored.targets)}
        for (name, other), test in zip(against.items(), tests, strict=True)
    }
    decision = {
        "type": DECISION_TYPE,
        "template": corpus.prompt.template,
        "labels": corpus.labels,
        "temperatures": temperatures,
        "questions": {name: question.to_json() for name, question in corpus.questions().items()},
        "columns": corpus.ledger["columns"],
        "report": report.to_json(),
        "order_changes": changes.to_json() if changes else None,
        "baselines": baselines,
        "confidences": shares.max(-1).tolist(),
        "correct": [bool(hit) for hit in right],
    }
    c.figures["decision"] = decision
    write_json(c.run.out / "decision.json", decision)
    c.add_files({"decision": str(c.run.out / "decision.json")})
    c.compared = [str(c.figures["comparison"]["headline"]), *report.lines()]  # type: ignore[index]
    if changes:
        text = f"{changes.value:.1%} of answers change when the model itself is asked in another order of the options"
        c.compared.append(f"{text} (at most {changes.high:.1%})")
    for line in c.compared:
        c.events.emit(Say(text=line))


def _quote_loss(c: DecisionContext, shares: np.ndarray, targets: np.ndarray) -> None:
    """The loss of what is exported: the weights with the temperatures that other rows have fitted."""
    losses = divergences(shares, targets)
    best, actual = c.figures["best"], c.figures["actual"]
    assert isinstance(best, dict) and isinstance(actual, dict)
    loss, stderr = float(losses.mean()), float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0
    c.figures |= {"best": best | {"loss": loss, "stderr": stderr}, "actual": actual | {"loss": loss}}


def _untrained(c: DecisionContext, fitting: list[DecisionRow], scored: Scored) -> np.ndarray:
    """The base's probabilities of the held-out rows, at the temperatures that suit the base."""
    with np.load(c.run.path / ZERO_SHOT) as saved:
        types = np.array([row.question.type for row in fitting])
        temperatures = Scored(saved["fitting"], saved["targets"], types, c.decision.heat).temperatures()
        return Scored(saved["judging"], scored.targets, scored.types).probabilities(temperatures)


def _majority(train: list[DecisionRow], judging: list[DecisionRow], width: int) -> np.ndarray:
    """How often each option is right among the training rows of the same question, (n, K)."""
    counted: dict[str, Counter[str]] = {}
    for row in train:
        counted.setdefault(row.name, Counter())[row.question.options[row.best].key] += 1
    shares = np.zeros((len(judging), width))
    for number, row in enumerate(judging):
        counts = [counted.get(row.name, Counter())[key] + 1e-9 for key in row.question.keys]
        shares[number, : len(counts)] = np.array(counts) / sum(counts)
    return shares


def _right(shares: np.ndarray, targets: np.ndarray) -> list[float]:
    right: list[float] = (shares.argmax(-1) == targets.argmax(-1)).astype(float).tolist()
    return right


def _comparison(tests: dict[str, PairedTest]) -> dict[str, object]:
    """Better only where it is better than both: what is no better than one class for all decides nothing."""
    verdicts = {test.verdict for test in tests.values()}
    not_better = [word for word in ("worse", TOO_FEW, NO_DIFFERENT) if word in verdicts]
    verdict = not_better[0] if not_better else "better"
    tuned = next(iter(tests.values()))
    beside = "; ".join(
        f"{name} {test.base:.1%} (difference {test.difference.value:+.1%}, {test.difference.low:+.1%} to "
        f"{test.difference.high:+.1%})"
        for name, test in tests.items()
    )
    headline = f"{verdict}: right on {tuned.tuned:.1%} of {tuned.rows} held-out rows, {beside}"
    reasons = {name: why for name, test in tests.items() if not test.is_shown and (why := unshown(test))}
    headline += "".join(f"; beside the {name} {why}" for name, why in reasons.items())
    return {"verdict": verdict, "headline": headline, "tests": {name: test.to_json() for name, test in tests.items()}}
