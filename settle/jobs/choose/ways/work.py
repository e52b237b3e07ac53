"""What all parts of a choice share, and how its ways are tuned."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.run import Run
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task
from settle.experiment.arm import Arm, Reply
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import Documents, Findings
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.settings import ChooseSettings
from settle.jobs.choose.setup import NO_PASSAGES, AnsweringModel, ModelInTurns, Passages, Setup, answers
from settle.jobs.choose.ways import DECIDE, TUNE_DOCUMENTS
from settle.jobs.choose.ways.decide_way import DecisionModel, write_decisions
from settle.jobs.choose.ways.tune_ways import PASSAGE_EPOCHS, Recipe, write_rows
from settle.library.reference import ModelRef


@dataclass
class Work:
    """What all parts of a choice share. model: as it is. found_train, found_test: what the documents have for each
    question, by its number. index_seconds: that the first indexing took."""

    settings: ChooseSettings
    events: Events
    folder: Path
    model: ModelInTurns
    examples: ExampleSet
    task: Task
    documents: Documents | None = None
    found_train: Findings = field(default_factory=Findings)
    found_test: Findings = field(default_factory=Findings)
    index_seconds: float = 0.0

    @property
    def search_seconds(self) -> float:
        """Of finding the passages for a question, in the mean."""
        known = [*self.found_train.known.values(), *self.found_test.known.values()]
        return sum(found.seconds for found in known) / max(1, len(known))

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time within to what a part took, which is kept over all sessions."""
        began = time.monotonic()
        try:
            yield
        finally:
            known = self.spent()
            choice_folder.note(self.folder, spent=known | {part: known.get(part, 0.0) + time.monotonic() - began})

    def spent(self) -> dict[str, float]:
        """Seconds by part so far."""
        known = choice_folder.noted(self.folder).get("spent")
        return dict(known) if isinstance(known, dict) else {}

    def ask(self, what: str, arm: Arm[Case, Reply], cases: Sequence[Case]) -> list[Reply]:
        """Answers to some cases, with their progress."""
        return answers(arm, cases, _Progress(self.events, what, len(cases)))

    def arm(
        self, setup: Setup, passages: Passages = NO_PASSAGES, model: AnsweringModel | None = None
    ) -> Arm[Case, Reply]:
        """The model in some setup; the one that was asked for unless another is given."""
        return setup.over(model or self.model, "", passages)


def tuned_model(work: Work, way: str, ref: ModelRef) -> AnsweringModel:
    """What answers for a way whose weights were tuned, in a process of its own."""
    if way == DECIDE:
        return DecisionModel(ref, work.examples.labels, work.settings.threads)
    return ModelInTurns(ref, work.model.max_tokens, work.settings.threads)


@dataclass(frozen=True)
class _Progress:
    events: Events
    what: str
    total: int

    def __call__(self, done: int) -> None:
        self.events.emit(Progress(what=f"{self.what}: answers", done=done, total=self.total))


def tuning_recipe(work: Work, way: str, suffix: str = "") -> Recipe:
    """How a way is tuned; its rows are written. suffix: of the names, for other examples than the choice's."""
    settings, reads = work.settings, way == TUNE_DOCUMENTS
    path = work.folder / f"{way.replace(' + ', '-')}{suffix}.jsonl"
    judged = work.folder / f"{path.stem}-test.jsonl" if way == DECIDE else None
    if judged is not None and not judged.exists():
        write_decisions(judged, work.examples.test, work.examples.labels)
    if not path.exists():  # an earlier session's run was made of it
        if judged is not None:
            write_decisions(path, work.examples.train_cases, work.examples.labels)
        else:
            if reads:
                work.found_train.complete(work.events)
            write_rows(path, work.examples.train, work.found_train if reads else None, settings.seed)
    taken = [run.name for run in Run.all()]
    name = choice_folder.own_name(work.folder, f"run {way}{suffix}", f"{work.folder.name}-{path.stem}", taken)
    epochs = settings.epochs * (PASSAGE_EPOCHS if reads else 1.0)
    return Recipe(name, path, epochs, str(settings.model), settings.seed, settings.threads, judged)
