"""The way that answers with a decision: where answers are a closed set, a head over its labels, one token an answer."""

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from settle.base.files import write_atomic
from settle.data.decisions.questions import Option, Question
from settle.evaluate.compare.cases import Case
from settle.evaluate.footprint import peak_bytes
from settle.experiment.arm import Reply, digest
from settle.infer.decisions.decider import Decider
from settle.jobs.choose.setup import AnsweringModel
from settle.library.reference import ModelRef
from settle.library.store import stamp_of
from settle.machine.power import EnergyMeter

NAME, INSTRUCTIONS = "answer", "Which of these is the answer?"


class DecisionModel(AnsweringModel):
    """A decision model in llama.cpp that is asked which of the labels answers a question."""

    def __init__(self, ref: ModelRef, labels: Sequence[str], threads: int | None = None) -> None:
        super().__init__(ref)
        self._question, self._threads = question(labels), threads
        self._decider: Decider | None = None
        self.key = digest([str(ref.weights.resolve()), stamp_of(ref.weights), version("xllamacpp"), list(labels)])
        self.num_bytes = ref.weights.stat().st_size

    def held_to(self, grammar: str) -> "DecisionModel":
        """Itself: it answers with one of the labels, whatever the grammar."""
        return self

    def load(self) -> None:
        if self._decider is None:
            decider = Decider(self.ref.weights, threads=self._threads)
            decider.start()
            self._decider = decider

    def close(self) -> None:
        decider, self._decider = self._decider, None
        if decider is not None:
            decider.close()

    def measure(self, item: Case) -> Reply:
        self.load()
        assert self._decider is not None
        began, meter = time.monotonic(), EnergyMeter().start()
        answer = self._decider.decide(state_of(item), [self._question])[0]
        self.process_peak = max(self.process_peak, peak_bytes(self._decider.pid or 0))
        probabilities = dict(zip(self._question.keys, answer.probabilities, strict=True))
        seconds, joules = time.monotonic() - began, meter.read().joules
        return Reply(answer.key, seconds=seconds, probabilities=probabilities, joules=joules)


def question(labels: Sequence[str]) -> Question:
    """The one question, with the labels as its options in a fixed order."""
    return Question("choice", INSTRUCTIONS, tuple(Option(label) for label in sorted(labels)))


def state_of(case: Case) -> str:
    """What is decided about: the person's turns."""
    return "\n\n".join(str(m["content"]) for m in case.messages if m["role"] != "system")


def write_decisions(path: Path, cases: Sequence[Case], labels: Sequence[str]) -> None:
    """Examples as rows of decisions; without those whose answer is none of the labels."""
    asked = {NAME: question(labels).to_json()}
    rows = [
        {"state": state_of(case), "questions": asked, "targets": {NAME: case.reference.strip()}}
        for case in cases
        if case.reference.strip() in labels
    ]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
