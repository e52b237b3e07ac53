"""OpenAI's Decisions API (https://platform.openai.com/docs/api-reference/decisions), in public beta.

It is as openai-python 3.57 of November 2026 has it: a predicate is a noul, choices and levels are listed. Whatever
changes in it changes here. Images are refused. Values of choices are typed: true and "true" are two choices.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from starlette.responses import Response

from settle.data.decisions.questions import DecisionAnswer, Question
from settle.server.apis import Api
from settle.server.gateway import Call, Endpoint, json_response
from settle.server.requests.readings import MOST_QUESTIONS, decide, question_of, text_of
from settle.wire.errors import invalid, unsupported
from settle.wire.fields import Body, Name
from settle.wire.types import JsonObject

PATHS = ("/v1/decisions", "/decisions")
Text = Annotated[str, Field(max_length=1 << 24)]
TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal", "input_json": "data"}  # their field


class Part(Body):
    """A part of a message, or of instructions."""

    type: Name
    text: Text | None = None
    refusal: Text | None = None
    data: JsonObject | list[JsonObject] | None = None
    image_url: Text | None = None
    detail: Name | None = None
    prompt_cache_breakpoint: JsonObject | None = None

    def read(self, param: str) -> str:
        """Return the text of the part. Raises ApiError for an image, and for a part that lacks its field."""
        if self.type == "input_image":
            raise unsupported(param, "this model reads no images")
        value = getattr(self, TEXTS.get(self.type, ""), None)
        if value is None:
            raise invalid(param, f"a part of the type {self.type[:40]!r} needs one of {', '.join(TEXTS)} and its field")
        return text_of(value)


Parts = Annotated[list[Part], Field(max_length=10_000)]


class Item(Body):
    """A message, a call of a function or a tool, or what came of it."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text | Parts | None = None
    phase: Name | None = None
    name: Name | None = None
    namespace: Name | None = None
    arguments: Text | None = None
    input: Text | None = None
    output: Text | Parts | None = None
    call_id: Name | None = None
    id: Name | None = None
    status: Name | None = None

    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "message": ("role", "content"),
        "function_call": ("name", "arguments", "call_id"),
        "function_call_output": ("output", "call_id"),
        "custom_tool_call": ("name", "input", "call_id"),
        "custom_tool_call_output": ("output", "call_id"),
    }

    def read(self) -> JsonObject:
        """Return the fields that say something, their parts as text. Raises ApiError."""
        values = {name: getattr(self, name) for name in self.NEEDS[self.type]}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise invalid(f"input.{missing[0]}", f"is missing in a {self.type}")
        read: JsonObject = {name: _joined(value, "input") for name, value in values.items()}
        return read if self.type == "message" else {"type": self.type} | read


class Option(Body):
    """One option of a choice."""

    value: Annotated[str, Field(min_length=1, max_length=1 << 16)] | bool
    description: Text | None = None


class Level(Body):
    """One level of a score."""

    label: Annotated[str, Field(min_length=1, max_length=1 << 16)]
    description: Text | None = None


class DecisionQuestion(Body):
    """One question. choices: of a choice; levels: of a score, the lowest first."""

    type: Literal["predicate", "choice", "score"]
    instructions: Text | Parts
    name: Name | None = None
    choices: Annotated[list[Option], Field(min_length=2, max_length=255)] | None = None
    levels: Annotated[list[Level], Field(min_length=2, max_length=10)] | None = None

    def question(self, param: str) -> Question:
        """Return the question in the form of decision models. Raises ApiError."""
        wanted = {"predicate": None, "choice": "choices", "score": "levels"}[self.type]
        for field in ("choices", "levels"):
            if (getattr(self, field) is not None) != (field == wanted):
                raise invalid(f"{param}.{field}", f"a {self.type} {'needs' if field == wanted else 'has no'} {field}")
        kind = "noul" if self.type == "predicate" else self.type
        question: JsonObject = {"type": kind, "instructions": _joined(self.instructions, param)}
        if self.choices:
            keys = self.keys()
            if len(set(keys)) < len(keys):
                raise invalid(f"{param}.choices", "a value is there twice")
            question["criteria"] = {key: c.description for key, c in zip(keys, self.choices, strict=True)}
        if self.levels:
            question["criteria"] = [f"{x.label}: {x.description}" if x.description else x.label for x in self.levels]
        return question_of(question, param)

    def keys(self) -> list[str]:
        """Return the choices as text; a boolean is told from a text of the same letters."""
        texts = {choice.value for choice in self.choices or () if isinstance(choice.value, str)}
        words = [c.value if isinstance(c.value, str) else str(c.value).lower() for c in self.choices or ()]
        return [
            f"{word} (boolean)" if isinstance(choice.value, bool) and word in texts else word
            for word, choice in zip(words, self.choices or (), strict=True)
        ]

    def answer(self, answer: DecisionAnswer) -> JsonObject:
        """Return the answer as this API formats it."""
        head: JsonObject = {"type": self.type, "name": self.name}
        if self.type == "predicate":
            return head | {"probability": answer.expected}
        if self.choices:
            values = [choice.value for choice in self.choices]
            shares: list[JsonObject] = [
                {"value": value, "probability": p} for value, p in zip(values, answer.probabilities, strict=True)
            ]
            head |= {"choice": values[answer.best]}
        else:
            labels = [level.label for level in self.levels or ()]
            shares = [
                {"value": i, "label": label, "probability": p}
                for i, (label, p) in enumerate(zip(labels, answer.probabilities, strict=True))
            ]
            head |= {"score": answer.expected}
        return head | {"confidence": answer.confidence, "probabilities": shares}


class DecisionsBody(Body):
    """What /v1/decisions takes. What is said about caching changes no answer."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=10_000)]
    questions: Annotated[list[DecisionQuestion], Field(min_length=1, max_length=MOST_QUESTIONS)]
    model: Name = ""
    prompt_cache_key: Name | None = None
    prompt_cache_options: JsonObject | None = None
    safety_identifier: Name | None = None

    def state(self) -> str:
        """Return a text, or one message of a user, as it is; anything else as a JSON list. Raises ApiError."""
        if isinstance(self.input, str):
            return self.input
        items = [item.read() for item in self.input]
        is_plain = len(items) == 1 and items[0].get("role") == "user"
        return str(items[0]["content"]) if is_plain else text_of(items)


class Decisions(Api):
    """Answers in the order of their questions."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        endpoint = self.endpoint(decisions)
        return [("POST", path, endpoint) for path in PATHS]

    def owns(self, path: str) -> bool:
        return path in PATHS


async def decisions(call: Call, body: DecisionsBody) -> Response:
    call.record.user = body.safety_identifier or ""
    entry, state = call.find(body.model), body.state()
    questions = [asked.question(f"questions.{i}") for i, asked in enumerate(body.questions)]
    answers, tokens = await decide(call.pool, entry, state, questions)
    call.record.prompt_tokens = tokens
    formatted = [asked.answer(answer) for asked, answer in zip(body.questions, answers, strict=True)]
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    return json_response({"model": entry.id, "answers": formatted, "usage": usage})


def _joined(content: str | list[Part], param: str) -> str:
    return content if isinstance(content, str) else "\n".join(part.read(param) for part in content)
