"""JSON that the server reads and writes: OpenAI's and llama.cpp's objects, with the fields that are looked at.

Chats are OpenAI's chunks, which every API translates; completions are llama.cpp's events. Further fields of an object
are passed on unread.
"""

from typing import NotRequired, TypedDict

from settle.infer.child_process import Json
from settle.infer.tool_calls.types import Delta as Delta
from settle.infer.tool_calls.types import JsonObject as JsonObject
from settle.infer.tool_calls.types import Tool as Tool
from settle.infer.tool_calls.types import ToolCall as ToolCall

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
