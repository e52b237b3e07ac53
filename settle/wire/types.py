"""JSON that the server reads and writes: OpenAI's and llama.cpp's objects, with the fields that are looked at.

Chats are OpenAI's chunks, which every API translates; completions are llama.cpp's events. Further fields of an object
are passed on unread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict

from settle.infer.child_process import Json
from settle.infer.tool_calls import Delta as Delta
from settle.infer.tool_calls import JsonObject as JsonObject
from settle.infer.tool_calls import Tool as Tool
from settle.infer.tool_calls import ToolCall as ToolCall

ToolChoice = Literal["auto", "none", "required"]
Logprobs = dict[str, list[Json]]  # "content": the tokens, each with its logprob, bytes, and top_logprobs


class Usage(TypedDict, total=False):
    """Numbers of tokens, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None


class Timings(TypedDict, total=False):
    """llama.cpp's own: n are tokens, cache_n those of the prompt that were cached."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class ChatMessage(TypedDict):
    """A message after `check_messages`: its content is one text."""

    role: str
    content: str
    name: NotRequired[str]
    tool_call_id: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    reasoning_content: NotRequired[str]


class Choice(TypedDict, total=False):
    """One of the answers to a request."""

    index: int
    delta: Delta  # of a chunk
    message: Delta  # of a whole answer
    text: str  # of a completion
    logprobs: Logprobs | None
    finish_reason: str | None
    stopped_by: str  # the stop string that ended it, where the request wants to know


class Chunk(TypedDict, total=False):
    """A chat completion, or a chunk of one. settle: what was trimmed, or all about an answer from documents."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    timings: Timings
    settle: JsonObject


class TextEvent(TypedDict, total=False):
    """llama.cpp's answer of /completion, or an event of it; stop: whether it is the last."""

    content: str
    tokens: list[int]
    stop: bool
    stop_type: str
    stopping_word: str
    tokens_evaluated: int
    tokens_predicted: int
    completion_probabilities: list[Json]
    model: str
    timings: Timings


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
    sampling: Json = field(default_factory=dict)  # under llama.cpp's names
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
    sampling: Json = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    more: JsonObject = field(default_factory=dict)  # further fields under llama.cpp's names
