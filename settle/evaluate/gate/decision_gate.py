"""The gate of decision models: the file in llama.cpp's `/v1/systemone` answers as the live model does.

Every key is compared with what was meant, and the probabilities of held-out states, and of odd ones, with those of the
live model: they are read in another program, through the template, the labels and the temperatures that the file has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import GateError
from settle.base.run import Run
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import stored_corpus
from settle.data.decisions.corpus import open_decisions, prompt_for
from settle.data.decisions.prompt import DecisionEncoder
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow
from settle.evaluate.decisions import score_rows
from settle.evaluate.gate.behaviour import ADVERSARIAL, Figures
from settle.evaluate.gate.gate import PROSE, SMALL_FILE, in_fp32
from settle.formats.gguf import read_gguf
from settle.formats.gguf.decision import DecisionKeys, read_decision
from settle.formats.gguf.types import ggml_type, is_float
from settle.infer.decider import Decider
from settle.library.facts import longest_context
from settle.model.decoder import Decoder
from settle.train.objectives.decision import Decision

APART = 0.01  # of a probability, at most
DECISION_FILE = "decision.json"  # in a run's out/
ROWS = 32  # held-out states, at most
FIX = "report it with this recipe: the file was not written"
FINER = "write it in f32 (--dtype f32), which rounds no weight; if that fails too, report it with this recipe"
KEYS = ("read_out", "template", "questions", "columns", "correct", "families")  # compared as they are


class ProbabilitiesApart(GateError):
    """The file's probabilities are further from the trained model's than the bar; a finer type may hold them."""


@dataclass(frozen=True)
class DecisionGate:
    """What a decision model's file is held to.

    keys: what the file has to hold. rows: held-out ones, with what is asked of them. bar: how far a probability may be
    from the live model's; where the weights of the file are quantized, a change is no fault.
    """

    model: Decoder
    objective: Decision
    encoder: DecisionEncoder
    keys: DecisionKeys
    rows: Sequence[DecisionRow]
    bar: float = APART

    def run(self, file: Path) -> Figures:
        """Run the gate; return its figures.

        Raises GateError for a key that is another one, and for a probability that is further away than the bar.
        """
        self._require_keys(file)
        rows = self._sampled(longest_context(file.name, read_gguf(file).metadata))
        with in_fp32(self.model, file.stat().st_size < SMALL_FILE):
            scored = score_rows(self.model, self.objective, self.encoder, rows)
        live = scored.probabilities(dict(self.keys.temperatures))
        longest = max(map(self._length, rows))
        worst, at = 0.0, rows[0]
        with Decider(file, max(512, longest + 16), slots=1) as decider:
            for row, ours in zip(rows, live, strict=True):
                (answer,) = decider.decide(row.state, [row.question])
                apart = float(np.abs(np.array(answer.probabilities) - ours[: len(answer.probabilities)]).max())
                if not apart <= worst:  # so that NaN is the worst
                    worst, at = apart, row
        if not worst <= self.bar:
            raise ProbabilitiesApart(
                f"{file.name} answers {at.name!r} about {at.state[:60]!r} with probabilities {worst:.3f} away from the "
                f"trained model's (bar {self.bar})",
                FINER,
            )
        return {"rows": len(rows), "largest_difference": worst, "bar": self.bar}

    def _require_keys(self, file: Path) -> None:
        read = read_decision(read_gguf(file).metadata)
        if read is None:
            raise GateError(f"{file.name} is no decision model: a key is missing", FIX)
        for name in KEYS:
            if getattr(read, name) != getattr(self.keys, name):
                raise GateError(f"the decision {name.replace('_', ' ')} of {file.name} is another one", FIX)
        temperatures, wanted = read.temperatures, self.keys.temperatures
        if temperatures.keys() != wanted.keys() or not _close(
            [temperatures[name] for name in wanted], list(wanted.values())
        ):
            raise GateError(f"{file.name} has the temperatures {dict(temperatures)}, the model has {dict(wanted)}", FIX)
        if not _close(read.confidences, self.keys.confidences):
            raise GateError(f"the decision confidences of {file.name} are others", FIX)

    def _length(self, row: DecisionRow) -> int:
        return len(self.encoder.prompt_ids(row.state, row.question, range(len(row.question.options))))

    def _sampled(self, context: int) -> list[DecisionRow]:
        """Return rows spread over the held-out ones, and the first question of each type about odd states.

        Of the odd ones only such as the model's context holds, since llama.cpp refuses longer ones for every user.
        """
        chosen = [self.rows[i] for i in np.unique(np.linspace(0, len(self.rows) - 1, ROWS).round().astype(int))]
        firsts = {row.question.type: row for row in reversed(self.rows)}
        odd = [text for text in ADVERSARIAL if text.strip() and "\0" not in text]
        asked = [replace(row, state=text) for row in firsts.values() for text in odd]
        return chosen + [row for row in asked if self._length(row) < context]


def _close(read: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(read) == len(wanted) and bool(np.allclose(read, wanted, rtol=1e-6, atol=1e-6))


def gate_of_run(run: Run, model: Decoder, tokenizer: Tokenizer, dtype: str) -> DecisionGate | None:
    """Return the gate of a run that made a decision model, None for another run.

    dtype: of the file that is written. Where the run's rows are gone, its questions are asked about built-in texts.
    """
    decision = run.read(f"out/{DECISION_FILE}")
    if not decision:
        return None
    keys, labels = keys_of(decision), decision["labels"]
    corpus = stored_corpus(str((run.read("plan.json") or {}).get("corpus")), open_decisions)
    rows = corpus.rows("held_out") if corpus else _built_in(keys)
    encoder = DecisionEncoder(tokenizer, prompt_for(tokenizer), labels)
    bar = APART if is_float(ggml_type(dtype).name) else 1.0
    return DecisionGate(model, Decision(labels=list(labels.values())), encoder, keys, rows, bar)


def _built_in(keys: DecisionKeys) -> list[DecisionRow]:
    questions = {name: Question.from_json(asked, name) for name, asked in keys.questions.items()}
    flat = {name: (1 / len(asked.options),) * len(asked.options) for name, asked in questions.items()}
    return [DecisionRow(text, name, q, flat[name], "built in") for text in PROSE for name, q in questions.items()]


def keys_of(decision: Mapping[str, Any]) -> DecisionKeys:
    """Return what a file holds of a run's `decision.json`."""
    return DecisionKeys(
        read_out=decision["type"],
        template=decision["template"],
        temperatures=decision["temperatures"],
        questions=decision["questions"],
        columns=tuple(decision.get("columns", ())),
        confidences=tuple(decision.get("confidences", ())),
        correct=tuple(decision.get("correct", ())),
        families=tuple(decision.get("families", ())),
    )
