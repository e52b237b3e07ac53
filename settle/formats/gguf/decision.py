"""The keys of a GGUF file by which llama.cpp answers typed questions at /v1/systemone.

They are those of tools/server/server-decision.cpp of llama.cpp, as of October 2026, with what settle keeps there.
llama.cpp renders the template of a question, reads the logits of the options' labels after it, divides them by the
temperature of the question's type, and takes the softmax. Which labels those are depends on the type of the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

from settle.base.errors import FormatError
from settle.formats import Metadata

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
    questions: Metadata = field(default_factory=dict)
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


class _Stored(BaseModel):
    """The keys as a file holds them."""

    model_config = ConfigDict(strict=True)

    read_out: str = Field(alias="decision.type")
    temperatures: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(alias="decision.temperature")
    template: str = Field(alias=TEMPLATE_KEY)
    questions: Json[dict[str, object]] = Field({}, alias=QUESTIONS_KEY)
    columns: list[str] = Field([], alias=COLUMNS_KEY)
    confidences: list[float] = Field([], alias=CONFIDENCES_KEY)
    correct: list[bool] = Field([], alias=CORRECT_KEY)
    families: list[int] = Field([], alias=FAMILIES_KEY)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if len(self.confidences) != len(self.correct):
            raise ValueError(f"{CONFIDENCES_KEY} and {CORRECT_KEY} do not belong together")
        if self.families and len(self.families) != len(self.confidences):
            raise ValueError(f"{FAMILIES_KEY} and {CONFIDENCES_KEY} do not belong together")
        return self


def read_decision(metadata: Metadata) -> DecisionKeys | None:
    """Return the decision keys of a file, or None where it is no decision model. Raises FormatError."""
    prefix = f"{metadata.get('general.architecture')}.decision."
    if f"{prefix}type" not in metadata:
        return None
    start = f"{prefix}temperature."
    temperatures = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    own = {"decision.type": metadata[f"{prefix}type"], "decision.temperature": temperatures}
    try:
        stored = _Stored.model_validate({**metadata, **own})
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where} is {first['input']!r:.40}: {first['msg']}" if where else first["msg"]
        raise FormatError(f"what it says of decisions is not sound: {what}", "get the file again") from None
    return DecisionKeys(
        stored.read_out,
        stored.template,
        stored.temperatures,
        stored.questions,
        tuple(stored.columns),
        tuple(stored.confidences),
        tuple(stored.correct),
        tuple(stored.families),
    )
