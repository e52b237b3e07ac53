"""The model answers otherwise than when it was exported, since llama.cpp is another version."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from settle.base.run import Run
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE
from settle.doctor.subject import Subject
from settle.doctor.trial import Item, Side, Trial
from settle.infer.engine import Engine
from settle.library.engines import PACKAGE, engine_versions, installed_engine, unpacked_engine
from settle.library.reference import ModelRef

CONTEXT = 512
FEWEST_CHANGED = 2  # answers: one may be a near-tie that rounding decides
LEAST_NATS, MOST_NATS = 0.05, 50.0  # per token; rounding is some 0.0001
GIVEN, WRITTEN = 6, 10  # tokens of a text: its beginning, and what the model goes on with
PROVEN, TEXTS = 16, 32
TOP = 512  # tokens whose probabilities are asked for; one that is none of them counts as the last of them
Kept = tuple[list[int], list[int]]  # a prompt and its answer, as ids


class OtherEngine(Check):
    """The gate keeps what the exported file answered; the same file must answer the same today."""

    number: ClassVar[int] = 22
    symptom: ClassVar[str] = "it worked last week: the same file answers otherwise than when it was exported"
    about: ClassVar[tuple[str, ...]] = ("run", "model")
    seconds: ClassVar[float] = 4.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.run is not None and subject.model is not None
        then, now = _recorded(subject.run), subject.running.engine_version or installed_engine()
        kept = _kept(subject.run)
        if not then or then == now or not kept:
            return
        changed = _changed(subject.model, subject.running.engine, kept)
        if changed >= FEWEST_CHANGED:
            yield Finding(
                check=self.part_name(),
                what=f"llama.cpp is {PACKAGE} {now}, and the model was exported with {then}",
                evidence=(f"{changed} of {len(kept)} answers are not those of the day of the export",),
                strength=min(0.95, 0.4 + 0.5 * changed / len(kept)),
                details={"then": then, "now": now},
            )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial:
        assert subject.run is not None and subject.model is not None
        good, bad = _narrowed(subject, str(finding.details["then"]), str(finding.details["now"]))
        before = _Text(f"with {bad}", subject.model, _folder(subject, bad))
        after = _Text(f"with {good}", subject.model, _folder(subject, good))
        began = time.monotonic()
        texts = list(_written(subject.model, _folder(subject, good)))
        seconds = (time.monotonic() - began) / len(texts)  # to write a text takes about as long as to read it
        return Trial(
            knob=f"{PACKAGE} {good} in place of {bad}",
            before=before,
            after=after,
            measure=f"loss of what {good} writes",
            unit="nats per token",
            items=texts[:PROVEN],
            others=texts[PROVEN:],
            least=LEAST_NATS,
            seconds=seconds,
            fix=_pinned(good),
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return _pinned(str(finding.details["then"]))


def _written(model: ModelRef, folder: Path | None) -> Iterator[Item]:
    """What the model writes after beginnings of texts, drawn from its own distribution: the mean difference of two
    versions' losses on it is the KL divergence between them, whatever the model was trained on."""
    with _engine(model, folder) as engine:
        for seed, text in enumerate([*PROSE, *(known.question for known in KNOWN_ANSWERS)][:TEXTS]):
            given = engine.tokenize(text, opening=True)[:GIVEN]
            went_on = engine.answer(given, WRITTEN, temperature=1.0, seed=seed).text
            yield {"given": len(given), "ids": [*given, *engine.tokenize(went_on)][: GIVEN + WRITTEN]}


class _Text(Side):
    """Texts, read by one version of llama.cpp: nats per token of what was written."""

    def __init__(self, name: str, model: ModelRef, engine: Path | None) -> None:
        self.name, self.num_bytes = name, model.weights.stat().st_size
        self._model, self._folder = model, engine
        self._engine: Engine | None = None

    def open(self) -> None:
        engine = _engine(self._model, self._folder)
        engine.start()
        self._engine = engine

    def measure(self, item: Item) -> float:
        assert self._engine is not None and isinstance(item, Mapping)
        ids, given = item["ids"], item["given"]
        assert isinstance(ids, list) and isinstance(given, int)
        losses = [self._loss(ids[:at], ids[at]) for at in range(given, len(ids))]
        return sum(min(loss, MOST_NATS) for loss in losses) / max(1, len(losses))

    def _loss(self, before: list[int], token: int) -> float:
        """Of a token, in nats; at most that of the least likely one that is known."""
        assert self._engine is not None
        known = self._engine.next_token_logprobs(before, TOP)
        return -known.get(token, min(known.values()))

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _engine(model: ModelRef, folder: Path | None) -> Engine:
    return Engine(model.weights, CONTEXT, adapter=model.adapter, engine=folder)


def _changed(model: ModelRef, folder: Path | None, kept: Sequence[Kept]) -> int:
    """How many answers of a version of llama.cpp are not those that were kept."""
    with _engine(model, folder) as engine:
        return sum(engine.greedy(prompt, len(answer))[: len(answer)] != answer for prompt, answer in kept)


def _recorded(run: Run) -> str | None:
    """The version of llama.cpp that the run's gate used."""
    plan = run.read("plan.json")
    versions = plan.get("versions") if isinstance(plan, dict) else None
    found = versions.get(PACKAGE) if isinstance(versions, dict) else None
    return found if isinstance(found, str) else None


def _kept(run: Run) -> list[Kept]:
    """Prompts and answers of the gate, as ids."""
    result = run.read("result.json")
    gate = result.get("gate") if isinstance(result, dict) else None
    answers = gate.get("answers") if isinstance(gate, dict) else None
    kept = [a for a in answers if isinstance(a, Mapping)] if isinstance(answers, Sequence) else []
    return [(list(a["prompt"]), list(a["answer"])) for a in kept if a.get("prompt") and a.get("answer")]


def _folder(subject: Subject, version: str) -> Path | None:
    """Where a version of llama.cpp lies; None for the installed one. Raises UsageError when it is not here."""
    running = subject.running
    return running.engine if running.engine and version == running.engine_version else unpacked_engine(version)


def _narrowed(subject: Subject, good: str, bad: str) -> tuple[str, str]:
    """The last version that answers as then and the first that does not, of those that are here, by halving."""
    assert subject.run is not None and subject.model is not None
    inside = [v for v in {*engine_versions(), installed_engine()} if _order(good) < _order(v) < _order(bad)]
    inside.sort(key=_order)
    while inside:
        at = len(inside) // 2
        if _changed(subject.model, _folder(subject, inside[at]), _kept(subject.run)) >= FEWEST_CHANGED:
            bad, inside = inside[at], inside[:at]
        else:
            good, inside = inside[at], inside[at + 1 :]
    return good, bad


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _pinned(version: str) -> Fix:
    return Fix(
        what=f"keep llama.cpp at {version} until it is mended",
        command=f"pip install '{PACKAGE}=={version}'",
    )
