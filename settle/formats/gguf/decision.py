"""The keys of a GGUF file by which llama.cpp answers typed questions at /v1/systemone.

They are those of tools/server/server-decision.cpp of llama.cpp, as of October 2026, with what settle keeps there.
llama.cpp renders the template of a question, reads the logits of the options' labels after it, divides them by the
temperature of the question's type, and takes the softmax. Which labels those are depends on the type of the model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

TEMPLATE_KEY = "tokenizer.chat_template.systemone"
CONFIDENCES_KEY, CORRECT_KEY = "settle.decision.confidences", "settle.decision.correct"
FAMILIES_KEY = "settle.decision.families"
QUESTIONS_KEY, COLUMNS_KEY = "settle.decision.questions", "settle.decision.columns"


@dataclass(frozen=True)
class DecisionKeys:
    """What makes a model a decision model.

    read_out: llama.cpp's name of how labels are read. template: Jinja, over `state`, `instructions`, `type` and
    `options` (`label`, `key`, `description`). temperatures: by type of question; 1 where there is none.

    Empty in models of others: questions: those that it was tuned for, by name, as `/v1/systemone` spells them. columns:
    of the table that its states were made of. confidences, correct: of its answers on rows that trained nothing.
    families: the same number for rows that are nearly alike; empty in files of before December 2026.
    """

    read_out: str
    template: str
    temperatures: Mapping[str, float] = field(default_factory=dict)
    questions: Mapping[str, object] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    confidences: tuple[float, ...] = ()
    correct: tuple[bool, ...] = ()
    families: tuple[int, ...] = ()

    def metadata(self, architecture: str) -> dict[str, object]:
        """Return the keys as a file of that architecture holds them."""
        own: dict[str, object] = {f"{architecture}.decision.type": self.read_out, TEMPLATE_KEY: self.template}
        own |= {f"{architecture}.decision.temperature.{name}": float(t) for name, t in self.temperatures.items()}
        if self.questions:
            own[QUESTIONS_KEY] = json.dumps(self.questions, ensure_ascii=False)
        if self.columns:
            own[COLUMNS_KEY] = list(self.columns)
        if self.confidences:
            own |= {CONFIDENCES_KEY: [float(c) for c in self.confidences], CORRECT_KEY: [bool(c) for c in self.correct]}
        if self.families:
            own[FAMILIES_KEY] = list(self.families)
        return own


def read_decision(metadata: Mapping[str, object]) -> DecisionKeys | None:
    """Return the decision keys of a file whose header was checked, or None where it is no decision model."""
    architecture = metadata.get("general.architecture")
    read_out, template = metadata.get(f"{architecture}.decision.type"), metadata.get(TEMPLATE_KEY)
    if not isinstance(read_out, str) or not isinstance(template, str):
        return None
    return DecisionKeys(
        read_out,
        template,
        dict(_temperatures(metadata)),
        _questions(metadata),
        tuple(_list(metadata, COLUMNS_KEY, str)),
        tuple(_list(metadata, CONFIDENCES_KEY, float)),
        tuple(_list(metadata, CORRECT_KEY, bool)),
        tuple(_list(metadata, FAMILIES_KEY, int)),
    )


def decision_complaints(metadata: Mapping[str, object]) -> Iterator[str]:
    """Yield what is wrong with a file's decision keys; nothing where it has none."""
    architecture = metadata.get("general.architecture")
    key = f"{architecture}.decision.type"
    if key not in metadata:
        return
    if not isinstance(metadata[key], str):
        yield f"{key} is not a name"
    if not isinstance(metadata.get(TEMPLATE_KEY), str):
        yield f"it is a decision model without a template for its questions, {TEMPLATE_KEY}"
    for name, temperature in _temperatures(metadata):
        if not (math.isfinite(temperature) and temperature > 0):
            yield f"the temperature of {name} questions is {temperature}"
    try:
        _questions(metadata)
    except (ValueError, RecursionError):
        yield f"{QUESTIONS_KEY} is no JSON object"
    confidences, correct = metadata.get(CONFIDENCES_KEY, []), metadata.get(CORRECT_KEY, [])
    if not (isinstance(confidences, list) and isinstance(correct, list) and len(confidences) == len(correct)):
        yield f"{CONFIDENCES_KEY} and {CORRECT_KEY} do not belong together"
    elif FAMILIES_KEY in metadata and len(_list(metadata, FAMILIES_KEY, int)) != len(confidences):
        yield f"{FAMILIES_KEY} and {CONFIDENCES_KEY} do not belong together"


def _temperatures(metadata: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    prefix = f"{metadata.get('general.architecture')}.decision.temperature."
    for key, value in metadata.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), float(value) if isinstance(value, int | float) else math.nan


def _questions(metadata: Mapping[str, object]) -> dict[str, object]:
    """Read the questions. Raises ValueError for what is no JSON."""
    written = metadata.get(QUESTIONS_KEY, "{}")
    value = json.loads(written) if isinstance(written, str) else None
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _list(metadata: Mapping[str, object], key: str, kind: type[T]) -> list[T]:
    values = metadata.get(key)
    return [value for value in values if isinstance(value, kind)] if isinstance(values, list) else []
