"""settle tune --objective decision: a model that answers typed questions with calibrated probabilities."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, Say, Warn
from settle.base.files import write_json
from settle.base.run.result import Result
from settle.base.statistics import VERDICT_P, Interval, PairedTest, holm, paired_test
from settle.data.corpus import stored_corpus
from settle.data.decisions.calibration import divergences, refusal_for
from settle.data.decisions.corpus import DecisionCorpus, open_decisions, prepare_decisions
from settle.data.decisions.prompt import DECISION_TYPE, DecisionEncoder, own_order
from settle.data.decisions.rows import DecisionRow
from settle.evaluate.calibration import RISKS, CalibrationReport, brier
from settle.evaluate.compare.sample_size import smallest_visible, unshown
from settle.evaluate.compare.verdict_file import Files, decided_against_baselines, write_read_verdict
from settle.evaluate.decisions import ORDERS, Scored, naive_bayes, order_changes, score_rows
from settle.evaluate.gate.behaviour import Figures
from settle.evaluate.gate.decision_gate import DecisionGate, ProbabilitiesApart, keys_of
from settle.evaluate.gate.export import ExportedAdapter, ExportedModel, export_run_adapter, export_run_model
from settle.evaluate.gate.gate import held_out_texts
from settle.jobs.job import RunJob
from settle.jobs.proof_stages import proof, scores
from settle.jobs.settings import TuneSettings
from settle.jobs.training_stages import build, earlier_session, judge, loop, restored_data, result
from settle.jobs.tuning_stages import TuningContext, again, forecast, plan, probe
from settle.library.catalogue import transformers_name
from settle.library.facts import PLAIN_TEXT_KEY
from settle.library.pretrained import open_pretrained
from settle.library.resolve import resolve
from settle.library.run_models import record_made
from settle.model.load_adapter import TrainedAdapter
from settle.plan.phases import EXPORT
from settle.train.live_run import adapter_of, open_base
from settle.train.objectives.decision import Decision

ZERO, MAJORITY, SIMPLE = "zero-shot", "majority class", "naive Bayes on the words"  # what a model is held against
FITTING = "selection"  # the side that judges nothing and trains nothing
FEW = 5  # rows of a class below which hardly anything is learned of it
ORDERED_ROWS, FEWEST_ORDERED = 100, 8  # held-out rows that are asked in other orders, at most and at least
ORDERS_SHARE = 0.05  # of a time budget, at most, goes to other orders
ZERO_SHOT = "zero_shot.npz"
LEAST_ROOM, SHORT_CONTEXT = 16, 512  # tokens: of a text, at least; of a context, below which people are told its room


@dataclass
class DecisionContext(TuningContext):
    """untrained: what the base says on the held-out rows, with the temperature that suits it."""

    settings: TuneSettings
    corpus: DecisionCorpus = field(init=False)
    keys: Mapping[str, Any] = field(default_factory=dict)  # decision.json: how the model is asked, and its report
    right: Sequence[list[float]] = ()  # 1.0 for each held-out row answered right: by the model, then by its baselines

    def made(self) -> Result:
        return super().made().model_copy(update={"decision": self.keys} if self.keys else {})

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
        asked = held_out.num_inputs + self.corpus.selection.num_inputs
        ordered = held_out.num_inputs * (ORDERS + 1) * min(1.0, ORDERED_ROWS / held_out.num_rows)
        if not self.settings.compare:
            ordered = 0.0
        most = math.inf if self.budget is None else ORDERS_SHARE * self.budget
        return float(seconds_per_token * asked + min(most, seconds_per_token * ordered))

    def pace_name(self, stage: str) -> str:
        return "compare decisions" if stage == "compare" else super().pace_name(stage)


def base(c: DecisionContext) -> None:
    """Open the model that is tuned; settings that mean nothing here are refused."""
    for name in ("score", "sample"):
        if getattr(c.settings, name) is not None:
            raise UsageError(f"--{name} is for models that write", "leave it out: decisions are scored as they are")
    c.base = open_base(c.tuning) if c.record is not None else open_pretrained(c.settings.model, c.events)


def data(c: DecisionContext) -> None:
    """Labelled rows on three sides; what they can and cannot show is said before anything runs."""
    if c.record is not None and restored_data(c, stored_corpus(str(c.record["corpus"]), open_decisions)):
        return
    context = c.base.part.max_position_embeddings
    rows = c.settings.rows.model_copy(update={"max_tokens": min(c.settings.rows.max_tokens or context, context)})
    asked = Decision.model_validate(c.settings.objective.settings)
    c.corpus = prepare_decisions(c.settings.inputs, c.base.tokenizer, rows, asked.question, asked.shuffle)
    labels = c.settings.objective.over({"labels": list(c.corpus.labels.values())})
    c.settings = c.settings.model_copy(update={"objective": labels})
    _describe(c)
    _require_room(c, context)


def _require_room(c: DecisionContext, context: int) -> None:
    """Raise DataError where the base's context has no room for texts next to the questions.

    Such a model could be trained and never be asked.
    """
    encoder = DecisionEncoder(c.base.tokenizer, c.corpus.prompt, c.corpus.labels)
    for name, question in c.corpus.questions().items():
        taken = len(encoder.prompt_ids("", question, own_order(question)))
        longest = max(int(store.lengths.max()) for store in (c.corpus.train, c.corpus.held_out))
        if context - taken < LEAST_ROOM:
            raise DataError(
                f"{name!r} with its options takes {taken} of the {context} tokens that {c.base.name} reads",
                "shorten the options, or take a base with a longer context",
            )
        if context < SHORT_CONTEXT:
            text = f"{c.base.name} reads {context} tokens, of which {name!r} with its options takes {taken}: texts of "
            text += f"more than {context - taken - 1} tokens cannot be decided (yours and the question: {longest})"
            c.events.emit(Warn(text=text))


def _describe(c: DecisionContext) -> None:
    corpus, ledger = c.corpus, c.corpus.ledger
    uses = ("to train on", "to choose the weights and fit the temperatures by", "to judge")
    stores = (corpus.train, corpus.selection, corpus.held_out)
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
    """Score the rows with the base, before it is trained."""
    if c.record is not None:
        return
    fitting, judging = (
        score_rows(c.live.model, c.decision, c.encoder, c.corpus.rows(side)) for side in (FITTING, "held_out")
    )
    np.savez(c.run.path / ZERO_SHOT, fitting=fitting.scores, targets=fitting.targets, judging=judging.scores)


def compare(c: DecisionContext) -> None:
    """Fit the temperatures on rows that judge and train nothing; then judge, on rows of their own."""
    if not c.is_usable:
        return
    corpus, model = c.corpus, c.live.model
    model.load_trainable(c.outcome.best)
    judging = corpus.rows("held_out")
    fitting = score_rows(model, c.decision, c.encoder, corpus.rows(FITTING))
    temperatures = fitting.temperatures()
    began = time.perf_counter()
    scored = score_rows(model, c.decision, c.encoder, judging)
    per_row = (time.perf_counter() - began) / len(judging)
    families = corpus.held_out.families.tolist()
    shares = scored.probabilities(temperatures)
    _quote_loss(c, shares, scored.targets)
    report = CalibrationReport.of(shares, scored.targets, families)
    others = _baselines(c, judging, scored)
    c.right = [_right(answers, scored.targets) for answers in (shares, *others.values())]
    tests = _tests(others, scored.targets, c.right[0], families)
    c.comparison = comparison = _comparison(tests, report.warning)
    surest = _untrained_rows(c, fitting.probabilities(temperatures), fitting.targets, shares, scored.targets)
    changes = _order_changes(c, judging, per_row)
    decision = {
        "type": DECISION_TYPE,
        "template": corpus.prompt.template,
        "labels": corpus.labels,
        "temperatures": temperatures,
        "questions": {name: question.to_json() for name, question in corpus.questions().items()},
        "columns": corpus.ledger["columns"],
        "report": report.to_json(),
        "order_changes": changes.to_json() if changes else None,
        "baselines": {
            name: {"accuracy": tests[name].base, "brier": brier(other, scored.targets)}
            for name, other in others.items()
        },
        **surest,
    }
    c.keys = decision
    write_json(c.run.out / "decision.json", decision)
    c.add_files({"decision": str(c.run.out / "decision.json")})
    c.compared = [str(comparison["headline"]), *(f"! {note}" for note in comparison["notes"])]
    c.compared += [*report.lines(), *_refusals(surest)]
    if changes:
        text = f"{changes.value:.1%} of answers change when the model itself is asked in another order of the options"
        c.compared.append(f"{text} (at most {changes.high:.1%}); settle asks in the order of the training")
    for line in c.compared:
        c.events.emit(Say(text=line))


def _untrained_rows(c: DecisionContext, *scored: np.ndarray) -> dict[str, list[Any]]:
    """Return what the file holds of the rows that trained nothing, by which a risk is promised: those that judge first.

    scored: probabilities and targets of those that fitted the temperatures, and of those that judge.
    """
    fitted, wanted, shares, targets = scored
    stores = (c.corpus.held_out, c.corpus.selection)
    return {
        "confidences": [*shares.max(-1).tolist(), *fitted.max(-1).tolist()],
        "correct": [hit > 0 for hit in _right(shares, targets) + _right(fitted, wanted)],
        "families": [int(family) for store in stores for family in store.families],
    }


def _refusals(surest: Mapping[str, list[Any]]) -> Iterator[str]:
    """For a person: how much `settle decide --refuse-above-risk` would answer."""
    for risk in RISKS:
        refusal = refusal_for(risk, surest["confidences"], surest["correct"], surest["families"])
        few = f"takes {refusal.needed} rows that trained nothing, there are {refusal.independent:.0f}"
        if refusal.independent < refusal.needed:
            answered = few
        elif refusal.threshold is None:
            answered = "no answer is sure enough"
        else:
            answered = f"{refusal.answered / refusal.rows:.0%} answered, from {refusal.threshold:.3f} on"
        yield f"--refuse-above-risk {risk:.0%}: {answered}"


def _order_changes(c: DecisionContext, judging: list[DecisionRow], per_row: float) -> Interval | None:
    """On as many rows as a time budget leaves time for; not with --no-compare. per_row: seconds of one answer."""
    if not c.settings.compare:
        return None
    left, rows = c.seconds_to_compare, ORDERED_ROWS
    if left is not None and c.budget is not None:
        spare = min(left - c.phases.get(EXPORT, 0.0), ORDERS_SHARE * c.budget)
        rows = min(rows, int(spare / max(per_row * (ORDERS + 1), 1e-9)))
    if rows < FEWEST_ORDERED:
        c.leave_out_pace()
        c.events.emit(Say(text="there is no time to ask in another order of the options"))
        return None
    if rows < ORDERED_ROWS:
        c.leave_out_pace()
    return order_changes(
        c.live.model, c.decision, c.encoder, judging[:rows],
        lambda done, total: c.events.emit(Progress(what="orders", done=done, total=total, unit="rows")),
    )  # fmt: skip


def _quote_loss(c: DecisionContext, shares: np.ndarray, targets: np.ndarray) -> None:
    """Set the loss to that of what is exported: the weights with the temperatures that other rows have fitted."""
    losses = divergences(shares, targets)
    loss, stderr = float(losses.mean()), float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0
    c.best = c.best.model_copy(update={"loss": loss, "stderr": stderr})
    c.actual["loss"] = loss


def _baselines(c: DecisionContext, judging: list[DecisionRow], scored: Scored) -> dict[str, np.ndarray]:
    """Return the probabilities (n, K) of what the model has to beat, by name.

    The simple classifier learns from every row that judges nothing, since it takes none to choose its weights.
    """
    width = scored.targets.shape[1]
    learning = [*c.corpus.rows("train"), *c.corpus.rows(FITTING)]
    return {
        ZERO: _untrained(c, scored),
        MAJORITY: _majority(c.corpus.rows("train"), judging, width),
        SIMPLE: naive_bayes(learning, judging, width),
    }


def _tests(
    others: Mapping[str, np.ndarray], targets: np.ndarray, right: list[float], families: list[int]
) -> dict[str, PairedTest]:
    """Test the model against each baseline; better is claimed against the two without the rows, together."""
    found = {name: paired_test(_right(other, targets), right, families) for name, other in others.items()}
    claimed = dict(zip((ZERO, MAJORITY), holm([found[ZERO], found[MAJORITY]]), strict=True))
    return found | claimed


def _untrained(c: DecisionContext, scored: Scored) -> np.ndarray:
    """Return the base's probabilities of the held-out rows, at the temperatures that suit the base."""
    with np.load(c.run.path / ZERO_SHOT) as saved:
        types = np.array([row.question.type for row in c.corpus.rows(FITTING)])
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


def _comparison(tests: Mapping[str, PairedTest], warning: str = "") -> dict[str, Any]:
    """Return the verdict with its headline, notes and tests."""
    verdict, tuned = decided_against_baselines([tests[name] for name in (ZERO, MAJORITY, SIMPLE)]), tests[ZERO]
    beside = "; ".join(
        f"{name} {test.base:.1%} (difference {test.difference.value:+.1%}, {test.difference.low:+.1%} to "
        f"{test.difference.high:+.1%})"
        for name, test in tests.items()
    )
    headline = f"{verdict}: right on {tuned.tuned:.1%} of {tuned.rows} held-out rows, {beside}"
    unclear = {name: unshown(tests[name]) for name in (ZERO, MAJORITY) if not tests[name].is_shown}
    headline += "".join(f"; beside the {name} {why}" for name, why in unclear.items() if why)
    notes = [note for note in (_of_words(tests[SIMPLE]), warning) if note]
    shown = {name: test.to_json() for name, test in tests.items()}
    return {"verdict": verdict, "headline": headline, "notes": notes, "tests": shown}


def _of_words(test: PairedTest) -> str:
    """Say whether the simple classifier would do."""
    if test.verdict == "worse":
        return f"{SIMPLE} reaches {test.base:.0%}, more than this model: it is enough, or the model needs more rows"
    if test.verdict != "better":
        return f"{SIMPLE} reaches {test.base:.0%}: the model is not shown to be better, so that may be enough"
    return ""


def export(c: DecisionContext) -> None:
    """Export the decision model, an adapter merged: a file of its own cannot hold what llama.cpp needs of one."""
    if not c.is_usable:
        return
    live, base, name = c.live, c.base, c.run.name
    keys = keys_of(c.keys)
    gguf_keys = keys.metadata(live.architecture.gguf_family)
    texts = held_out_texts(c.corpus.held_out, c.tokenizer)
    card = {"verdict": c.verdict.verdict, **c.best.model_dump(exclude_none=True)}
    if base.metadata.get(PLAIN_TEXT_KEY):
        card["base"] = True
    live.model.load_trainable(c.outcome.best)
    rows = c.corpus.rows("held_out")
    if live.whole:
        whole = ExportedModel(
            name, live.model, live.architecture, c.outcome.best, c.tokenizer, texts, card, gguf_keys=gguf_keys
        )
        gate = DecisionGate(live.model, c.decision, c.encoder, keys, rows)
        files, c.gate = in_fine_enough_type(
            lambda dtype: export_run_model(whole, c.run.out, c.events, dtype, gate.run), c.events
        )
    else:
        base_name = transformers_name(base.source) or base.name
        adapter = TrainedAdapter.of_model(live.model, adapter_of(c.tuning), base_name, base.source.sha256)
        exported = ExportedAdapter(name, base, adapter, c.tokenizer, texts, card, gguf_keys)
        gate = DecisionGate(exported.model, c.decision, c.encoder, keys, rows)
        files, c.gate = in_fine_enough_type(
            lambda dtype: export_run_adapter(exported, c.run.out, c.events, dtype, gate.run), c.events
        )
    record_made(c.run, files, base.source)
    c.add_files({**files, "verdict": str(_keep_verdict(c, rows))})


def _keep_verdict(c: DecisionContext, rows: list[DecisionRow]) -> Path:
    """Write verdict.json by the held-out rows, and return its path."""
    tuned, untrained, majority, simple = c.right
    found = {"headline": c.compared[0], "measure": "right answers"}
    read = [(row.state, row.name, row.best) for row in rows]
    files = Files.of(c.base.source), Files.of(resolve(f"run:{c.run.path.name}").source)
    families = c.corpus.held_out.families.tolist()
    return write_read_verdict(c.run.out, found, (untrained, tuned), families, read, files, (majority, simple))


def in_fine_enough_type(
    write: Callable[[str], tuple[dict[str, str], Figures]], events: Events
) -> tuple[dict[str, str], Figures]:
    """Return what `write` returns for the coarsest type that keeps the probabilities.

    A small model's can move by more than the bar where its weights are only rounded to 16 bits. Raises GateError where
    no type keeps them.
    """
    try:
        return write("f16")
    except ProbabilitiesApart as e:
        events.emit(Say(text=f"{e.what}; rounding to 16 bits may be why, so it is written in f32"))
        return write("f32")


JOB = RunJob(
    "tune_decision",
    (
        earlier_session, base, data, plan, build, scores, zero_shot, probe, forecast, proof(again),
        loop, judge, compare, export, result,
    ),
    TuneSettings,
    DecisionContext,
    is_shared=True,
)  # fmt: skip
