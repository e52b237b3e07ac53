"""What all stages of a choice share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task
from settle.experiment.arm import Arm, Reply
from settle.jobs.choose.answerer import AnsweringModel, ModelInTurns, Passages, Setup, answers
from settle.jobs.choose.documents import Documents, Findings
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.folder import ChoiceFolder
from settle.jobs.choose.settings import ChooseSettings


@dataclass
class Work:
    """A choice in the middle.

    Attributes:
        found_train, found_test: what the documents have for each question, by its number.
    """

    settings: ChooseSettings
    events: Events
    folder: ChoiceFolder
    model: ModelInTurns  # as it is
    examples: ExampleSet
    task: Task
    documents: Documents | None = None
    found_train: Findings = field(default_factory=Findings)
    found_test: Findings = field(default_factory=Findings)
    index_seconds: float = 0.0  # that the first indexing took

    @property
    def search_seconds(self) -> float:
        """Mean time of finding the passages for a question."""
        known = [*self.found_train.known.values(), *self.found_test.known.values()]
        return sum(found.seconds for found in known) / max(1, len(known))

    def ask(self, what: str, arm: Arm[Case, Reply], cases: Sequence[Case]) -> list[Reply]:
        """Return answers to some cases, showing their progress."""

        def on_progress(done: int) -> None:
            self.events.emit(Progress(what=f"{what}: answers", done=done, total=len(cases)))

        return answers(arm, cases, on_progress)

    def arm(
        self, setup: Setup, passages: Passages | None = None, model: AnsweringModel | None = None
    ) -> Arm[Case, Reply]:
        """Return the model in some setup; the one that was asked for unless another is given."""
        return setup.over(model or self.model, "", passages)
