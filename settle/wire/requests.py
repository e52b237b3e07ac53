"""Requests in the one form that the bodies of all APIs become."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from settle.wire.tools import ToolChoice
from settle.wire.types import ChatMessage, JsonObject, Tool


@dataclass(frozen=True)
class ChatRequest:
    """messages: see `check_messages`. tools, choice: see `tools.choose`. is_parallel: several calls may come.
    schema: of the answer, {} for any JSON object.
    sampling: under llama.cpp's names. arguments: of the template. adapters: further LoRAs by name, and their scales.
    trim: whether the oldest turns may be dropped when the prompt is too long, which the answer reports.
    wants_stop: whether a choice that a stop string ended names it, as `stopped_by`. thinking_budget: tokens of
    reasoning. is_default_effort: the effort is the API's default, so a model without reasoning loses nothing.
    """

    model: str
    messages: list[ChatMessage]
    tools: list[Tool] = field(default_factory=list)
    choice: ToolChoice = "none"
    is_parallel: bool = True
    schema: JsonObject | None = None
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    n: int = 1
    top_logprobs: int | None = None
    sampling: JsonObject = field(default_factory=dict)
    arguments: JsonObject = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    trim: bool = False
    timings: bool = False
    wants_stop: bool = False
    thinking_budget: int | None = None
    is_default_effort: bool = False


@dataclass(frozen=True)
class TextRequest:
    """prompt: a text, or a list of token ids and texts. suffix: the text after the gap; None when there is no gap. Then
    `before` is the text before it, and `prompt` how its filling begins; extra: names and texts of other
    files, for code models.
    schema: {} for any JSON object. schema_name: the field that it was given in. more: further fields under llama.cpp's
    names."""

    prompt: str | Sequence[int | str]
    suffix: str | None = None
    before: str = ""
    extra: list[tuple[str, str]] = field(default_factory=list)
    schema: JsonObject | None = None
    schema_name: str = "json_schema"
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    top_logprobs: int | None = None
    sampling: JsonObject = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    more: JsonObject = field(default_factory=dict)
