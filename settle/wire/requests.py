"""Requests in the one form that the bodies of all APIs become."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from settle.wire.tools import ToolChoice
from settle.wire.types import ChatMessage, JsonObject, Tool


@dataclass(frozen=True)
class ChatRequest:
    """A chat to continue."""

    model: str
    messages: list[ChatMessage]  # see `check_messages`
    tools: list[Tool] = field(default_factory=list)
    choice: ToolChoice = "none"  # see `tools.choose`
    is_parallel: bool = True  # several calls may come
    schema: JsonObject | None = None  # of the answer, {} for any JSON object
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    n: int = 1
    top_logprobs: int | None = None
    sampling: JsonObject = field(default_factory=dict)  # under llama.cpp's names
    arguments: JsonObject = field(default_factory=dict)  # of the template
    adapters: dict[str, float] = field(default_factory=dict)  # further LoRAs by name, and their scales
    trim: bool = False  # the oldest turns may be dropped when the prompt is too long, which the answer reports
    timings: bool = False
    wants_stop: bool = False  # a choice that a stop string ended names it, as `stopped_by`
    thinking_budget: int | None = None  # tokens of reasoning
    is_default_effort: bool = False  # the effort is the API's default: a model without reasoning loses nothing


@dataclass(frozen=True)
class TextRequest:
    """A text to complete, or one with a gap to fill."""

    prompt: str | Sequence[int | str]  # text, or token ids and texts; where there is a gap, how its filling begins
    suffix: str | None = None  # the text after the gap; None when there is no gap
    before: str = ""  # the text before the gap
    extra: list[tuple[str, str]] = field(default_factory=list)  # names and texts of other files, for code models
    schema: JsonObject | None = None  # {} for any JSON object
    schema_name: str = "json_schema"  # the field that it was given in
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    top_logprobs: int | None = None
    sampling: JsonObject = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    more: JsonObject = field(default_factory=dict)  # further fields under llama.cpp's names
