"""What the stages of a choice share: its folder, its examples and documents, and what they make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from settle.base.errors import UsageError
from settle.base.events import Progress
from settle.base.files import home, read_json, write_json
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task
from settle.experiment.arm import Arm, Reply
from settle.experiment.race import Outcome
from settle.jobs.choose.answerer import AnsweringModel, Built, Failed, Measured, ModelInTurns, Passages, Setup, answers
from settle.jobs.choose.documents import Documents, Findings
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.forecast import Costs
from settle.jobs.choose.triage import Triage
from settle.jobs.choose.verdict import Verdict
from settle.jobs.job import Context
from settle.jobs.kept_work import RESULT, KeptFolder
from settle.jobs.settings import ChooseSettings
from settle.library.reference import ModelRef
from settle.model.source import Source


class KeptWay(BaseModel):
    """How a way answers, for `settle choose NAME --ask`."""

    system: str
    shots: tuple[tuple[str, str], ...]
    grammar: str = ""
    collection: str  # of its passages, or ""
    max_tokens: int
    labels: list[str]
    weights: Path
    adapter: Path | None
    model: str

    @property
    def setup(self) -> Setup:
        return Setup(self.system, self.shots, self.grammar)

    @property
    def ref(self) -> ModelRef:
        """The model. Raises UsageError where its file is gone."""
        for path in filter(None, (self.weights, self.adapter)):
            if not path.is_file():
                raise UsageError(f"{path} is gone", "run the same `settle choose` again")
        base = ModelRef(self.model, "model", Source(self.weights, "gguf", self.model))
        if self.adapter is None:
            return base
        return ModelRef(self.model, "adapter", Source(self.adapter, "gguf", self.model), base=base)


class ChoiceFolder(KeptFolder):
    """A choice on the disk: what is kept of it, and `way-<name>.json` of each way."""

    parent: ClassVar[str] = "choices"
    what: ClassVar[str] = "choice"

    @classmethod
    def finished(cls, name: str) -> "ChoiceFolder":
        """Return the folder of a finished choice. Raises UsageError where there is none of that name."""
        choices = home() / cls.parent
        if not (choices / name / RESULT).is_file():
            done = ", ".join(p.parent.name for p in sorted(choices.glob(f"*/{RESULT}"))) or "none yet"
            raise UsageError(
                f"there is no finished choice {name!r}; there are: {done}", "settle choose FILE --model NAME"
            )
        return cls(choices / name)

    def keep_way(self, way: str, kept: KeptWay) -> None:
        write_json(self._way_file(way), kept.model_dump(mode="json"))

    def kept_way(self, way: str) -> KeptWay:
        """Return how a way answers. Raises UsageError where it was not built."""
        path = self._way_file(way)
        if not path.is_file():
            raise UsageError(
                f"{self.name} has no way {way!r} that is ready", f"`settle choose` lists them in {self.path}"
            )
        return KeptWay.model_validate(read_json(path))

    def _way_file(self, way: str) -> Path:
        return self.path / f"way-{way.replace(' + ', '-')}.json"


@dataclass
class ChooseContext(Context):
    """What the stages of a choice make, in the order in which they make it. Times in seconds."""

    folder: ChoiceFolder
    settings: ChooseSettings
    ref: ModelRef = field(kw_only=True)
    examples: ExampleSet = field(kw_only=True)
    task: Task = field(kw_only=True)
    model: ModelInTurns = field(init=False)  # as it is
    documents: Documents | None = None
    found_train: Findings = field(default_factory=Findings)  # what the documents have for each question, by its number
    found_test: Findings = field(default_factory=Findings)
    index_seconds: float = 0.0  # that the first indexing took
    costs: Costs = field(init=False)
    expected: dict[str, float] = field(init=False)  # by part, before anything ran
    first: Triage = field(init=False)
    left: dict[str, float] = field(init=False)  # by way that can still win, after the first look
    ways: list[Built] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    measured: list[Measured] = field(init=False)
    outcome: Outcome = field(init=False)
    verdict: Verdict = field(init=False)

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

    def actual_seconds(self) -> Mapping[str, float]:
        """Return the seconds that each part took, over all sessions: building a way and its answers."""
        answered = {m.name: sum(reply.seconds for reply in m.replies) for m in self.measured}
        spent = self.folder.spent()
        return {part: round(seconds + answered.get(part, 0.0), 1) for part, seconds in spent.items()}
