"""Anthropic's Messages (https://docs.claude.com/en/api/messages).

Anthropic's errors have one form, so the field at fault is named in the message.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from settle.infer.tool_calls import function_call
from settle.wire.errors import invalid, unsupported
from settle.wire.exchange import Call, Message, Reply, Request, content_text, fields_of, objects_in
from settle.wire.fields import INT32, MOST_TOKENS, Body, Name, Share, effort_arguments, stops, validated
from settle.wire.formats import (
    RawBody,
    WireFormat,
    arguments_text,
    count_of,
    finish_of,
    messages_of,
    settings_of,
    tools_of,
)
from settle.wire.messages import check_tools, choose, may_repeat, merge_turns
from settle.wire.types import ChatMessage, ChatRequest, JsonObject

NOT_HERE = {
    "container": "this server has no containers",
    "mcp_servers": "this server calls no other servers",
    "betas": "this server has no beta features",
    "diagnostics": "this server keeps nothing to compare with",
    "inference_geo": "the model runs where this server runs",
}
# Claude Code begins its system prompt with a line for Anthropic's billing that differs in every request, so that no
# prompt would be found in the cache; llama.cpp's own endpoint leaves it out too
BOOKKEEPING = "x-anthropic-billing-header:"
KEEPS_ALL = {"type": "clear_thinking_20251015", "keep": "all"}
# numbers of tokens of a prompt; the first leaves out the others
_READ = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_BLOCKS = {"tool_use", "tool_result", "thinking", "redacted_thinking"}  # that no other API has


class Cache(Body):
    """Prompts are cached anyway, while there is memory."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Cached(Body):
    cache_control: Cache | None = None


class ContentBlock(Body):
    """A block of a message. speaker: the only role whose messages may have it."""

    speaker: ClassVar[str | None] = "assistant"

    def turn(self, role: str, where: str, called: dict[str, str]) -> ChatMessage:
        """Return the block as OpenAI's message. called: names of tools by the ids of their calls so far."""
        raise NotImplementedError


BlockT = TypeVar("BlockT", bound=ContentBlock)


class TextBlock(ContentBlock, Cached):
    speaker: ClassVar[str | None] = None

    type: Literal["text"]
    text: str
    citations: Annotated[list[object], Field(max_length=0)] | None = None

    def turn(self, role: str, where: str, called: dict[str, str]) -> ChatMessage:
        return {"role": role, "content": self.text}


class Thinking(ContentBlock):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""

    def turn(self, role: str, where: str, called: dict[str, str]) -> ChatMessage:
        return {"role": role, "content": "", "reasoning_content": self.thinking}


class Direct(Body):
    type: Literal["direct"]


class ToolUse(ContentBlock, Cached):
    type: Literal["tool_use"]
    id: Name
    name: Name
    input: JsonObject
    caller: Direct | None = None
    toolset_name: None = None

    def turn(self, role: str, where: str, called: dict[str, str]) -> ChatMessage:
        called[self.id] = self.name
        call = function_call(self.id, self.name, json.dumps(self.input, ensure_ascii=False))
        return {"role": role, "content": "", "tool_calls": [call]}


class ToolResult(ContentBlock, Cached):
    speaker: ClassVar[str | None] = "user"

    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[object] | None = None
    is_error: bool | None = None
    toolset_name: None = None

    def turn(self, role: str, where: str, called: dict[str, str]) -> ChatMessage:
        text = _text(self.content or "", f"{where}.content")
        text = f"Error: {text}" if self.is_error else text
        result: ChatMessage = {"role": "tool", "tool_call_id": self.tool_use_id, "content": text}
        if self.tool_use_id in called:
            result["name"] = called[self.tool_use_id]
        return result


BLOCKS: dict[str, type[ContentBlock]] = {
    "text": TextBlock,
    "thinking": Thinking,
    "tool_use": ToolUse,
    "tool_result": ToolResult,
}


class MessageBody(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[object]


class Tool(Cached):
    """eager_input_streaming: input is streamed as it is written in any case."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]
    description: str | None = None
    input_schema: JsonObject
    input_examples: list[JsonObject] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None

    def to_openai(self) -> JsonObject:
        shown = [json.dumps(example, ensure_ascii=False) for example in self.input_examples or ()]
        text = "\n".join([self.description or "", *(["Examples of its input:", *shown] if shown else ())])
        return {
            "type": "function",
            "function": {"name": self.name, "description": text, "parameters": self.input_schema},
        }


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    def to_openai(self) -> str | JsonObject:
        if (self.name is not None) != (self.type == "tool"):
            raise invalid("tool_choice.name", "is for type tool only")
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class ThinkingConfig(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class Format(Body):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class CountBody(Cached):
    """What /v1/messages/count_tokens takes."""

    model: Name
    messages: Annotated[list[object], Field(min_length=1, max_length=10_000)]
    system: str | list[object] | None = None
    tools: Annotated[list[object], Field(max_length=512)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    speed: Literal["standard"] | None = None
    user_profile_id: Name | None = None
    context_management: JsonObject | None = None
    container: object = None
    mcp_servers: object = None
    betas: object = None
    diagnostics: object = None
    inference_geo: object = None

    def to_chat(self) -> ChatRequest:
        """Return the chat request. Raises ApiError."""
        for field, why in NOT_HERE.items():
            if getattr(self, field) is not None:
                raise unsupported(field, why)
        if self.context_management not in (None, {}, {"edits": []}, {"edits": [KEEPS_ALL]}):
            raise unsupported("context_management", "this server removes nothing from a conversation")
        thinking = self.thinking or ThinkingConfig(type="adaptive")
        if (thinking.budget_tokens is not None) != (thinking.type == "enabled"):
            raise invalid("thinking.budget_tokens", "is for type enabled only")
        effort = self.output_config.effort if self.output_config else None
        arguments = effort_arguments(effort)
        arguments |= {} if thinking.type == "adaptive" else {"enable_thinking": thinking.type == "enabled"}
        form = (self.output_config and self.output_config.format) or self.output_format
        tools = [_tool(tool, f"tools.{number}").to_openai() for number, tool in enumerate(self.tools or ())]
        asked = self.tool_choice.to_openai() if self.tool_choice else None
        allowed, choice = choose(check_tools(tools), asked)
        disabled = self.tool_choice.disable_parallel_tool_use if self.tool_choice else None
        return ChatRequest(
            model=self.model,
            messages=self._messages(),
            tools=allowed,
            choice=choice,
            is_parallel=may_repeat(None if disabled is None else not disabled, asked),
            schema=form.schema_ or {"type": "object"} if form else None,
            arguments=arguments,
            thinking_budget=thinking.budget_tokens,
            is_default_effort=effort == "high",
        )

    def _messages(self) -> list[ChatMessage]:
        system = _text(self.system or "", "system")
        turns: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
        called: dict[str, str] = {}
        for number, message in enumerate(self.messages):
            turns += _turns(message, f"messages.{number}", called)
        return merge_turns(turns, ("system", "user", "assistant"))


class Metadata(Body):
    user_id: Name | None = None


class MessagesBody(CountBody):
    """What /v1/messages takes."""

    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    stop_sequences: list[str] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=INT32)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def to_chat(self) -> ChatRequest:
        request = super().to_chat()
        if request.thinking_budget is not None and request.thinking_budget >= self.max_tokens:
            raise invalid("thinking.budget_tokens", "must be less than max_tokens")
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return dataclasses.replace(
            request,
            max_tokens=self.max_tokens,
            stop=stops(self.stop_sequences, "stop_sequences"),
            sampling={name: value for name, value in sampling.items() if value is not None},
            timings=bool(self.stream),
            wants_stop=True,
        )


def _tool(value: object, where: str) -> Tool:
    kind = fields_of(value).get("type")
    if kind not in (None, "custom"):
        raise unsupported(f"{where}.type", f"{str(kind)[:60]} is not supported, only tools of type custom")
    return validated(Tool, value, where)


def _turns(value: object, where: str, called: dict[str, str]) -> Iterator[ChatMessage]:
    """Yield a message as OpenAI's, one for each block. called: names of tools by the ids of their calls so far."""
    message = validated(MessageBody, value, where)
    if isinstance(message.content, str) or message.role == "system":
        yield {"role": message.role, "content": _text(message.content, f"{where}.content")}
        return
    if not message.content:
        yield {"role": message.role, "content": ""}
    for number, block in enumerate(message.content):
        place = f"{where}.content.{number}"
        known = _block(BLOCKS, block, place)
        if known.speaker not in (None, message.role):
            raise invalid(place, f"{fields_of(block)['type']} is not allowed in a message of this role")
        yield known.turn(message.role, place, called)


def _block(known: Mapping[str, type[BlockT]], value: object, where: str) -> BlockT:
    """Return a block of one of the known types. Raises ApiError."""
    kind = fields_of(value).get("type")
    if not isinstance(kind, str):
        raise invalid(where, "must be an object with a type")
    if kind not in known:
        raise unsupported(where, f"{kind[:60]} is not supported; this model reads text")
    return validated(known[kind], value, where)


def _text(content: str | list[object], where: str) -> str:
    """Return a text, or a list of text blocks, as one text. Raises ApiError."""
    if isinstance(content, str):
        return content
    texts = [_block({"text": TextBlock}, block, f"{where}.{number}").text for number, block in enumerate(content)]
    return "\n".join(text for text in texts if not text.startswith(BOOKKEEPING))


class AnthropicFormat(WireFormat):
    """Recorded bodies: {"system", "messages", "max_tokens", …} and {"content": […], "stop_reason"}, or events of it."""

    rank: ClassVar[int] = 10
    known: ClassVar[str] = 'Anthropic: {"system", "messages": […], "max_tokens"} and {"content": […], "stop_reason"}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "thinking": ("thinking", "type"),
        "stop": ("stop_sequences",),
    }

    def request(self, body: RawBody) -> Request | None:
        turns = objects_in(body.get("messages"))
        if not turns or turns != body["messages"] or "options" in body or not _is_own(body, turns):
            return None
        messages: list[Message] = []
        if system := content_text(body.get("system")):
            messages.append({"role": "system", "content": system})
        for turn in turns:
            messages += _recorded_turn(turn)
        settings = settings_of(body, ("max_tokens", "temperature", "top_p", "top_k"))
        settings |= {"stop": body["stop_sequences"]} if body.get("stop_sequences") else {}
        if thinking := fields_of(body.get("thinking")):
            settings["thinking"] = thinking.get("type") != "disabled"
        tools = tools_of(body.get("tools"))
        return Request(tuple(messages), tools, settings, str(body.get("model") or ""), None, self.part_name(), body)

    def changed(self, setting: str, value: object) -> JsonObject:
        if setting == "thinking":
            return {"thinking": {"type": "enabled" if value else "disabled"}}
        return super().changed(setting, value)

    def reply(self, body: RawBody) -> Reply | None:
        kind = str(body.get("type"))
        if kind.startswith(("content_block_", "message_")) or kind == "ping":
            return _event(kind, body)
        blocks = body.get("content")
        if not isinstance(blocks, list) or "stop_reason" not in body:
            return None
        reply = Reply(finish=finish_of(body["stop_reason"]))
        for block in objects_in(blocks):
            reply = reply.then(_recorded_block(block))
        return _counted(reply, body.get("usage"))


def _is_own(body: RawBody, turns: Sequence[RawBody]) -> bool:
    if "system" in body or "stop_sequences" in body or "anthropic_version" in body:
        return True
    if any("input_schema" in tool for tool in objects_in(body.get("tools"))):
        return True
    blocks = [block for turn in turns for block in objects_in(turn.get("content"))]
    return bool(fields_of(body.get("thinking"))) or any(block.get("type") in _BLOCKS for block in blocks)


def _recorded_turn(turn: RawBody) -> list[Message]:
    """Return one of Anthropic's turns as OpenAI's messages: results of tools are messages of their own."""
    results, others, calls, thoughts = [], [], [], []
    for block in objects_in(turn.get("content")):
        kind = block.get("type")
        if kind == "tool_result":
            text = content_text(block.get("content"))
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id")), "content": text})
        elif kind == "tool_use":
            function = {"name": str(block.get("name")), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": str(block.get("id")), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        else:
            others.append(block)
    text = content_text(others) if isinstance(turn.get("content"), list) else content_text(turn.get("content"))
    message: JsonObject = {"role": str(turn.get("role") or "user"), "content": text}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    return [*results, *(messages_of([message]) or ())] if text or calls or not results else list(results)


def _recorded_block(block: RawBody) -> Reply:
    kind = block.get("type")
    if kind == "thinking":
        return Reply(reasoning=str(block.get("thinking") or ""))
    if kind == "tool_use":
        written = arguments_text(block["input"]) if block.get("input") else ""  # a stream's follows in pieces
        return Reply(calls=(Call(str(block.get("name")), written),))
    return Reply(text=str(block.get("text") or ""))


def _event(kind: str, body: RawBody) -> Reply:
    delta = fields_of(body.get("delta"))
    if kind == "content_block_delta":
        piece = delta.get("partial_json")
        calls = (Call("", str(piece)),) if piece else ()
        return Reply(str(delta.get("text") or ""), str(delta.get("thinking") or ""), calls)
    if kind == "content_block_start":
        return _recorded_block(fields_of(body.get("content_block")))
    usage = (fields_of(body.get("message")) or body).get("usage")
    return _counted(Reply(finish=finish_of(delta.get("stop_reason"))), usage)


def _counted(reply: Reply, usage: object) -> Reply:
    counts = fields_of(usage)
    read = [count_of(counts.get(name)) for name in _READ]
    return dataclasses.replace(
        reply,
        prompt_tokens=sum(count or 0 for count in read) if read[0] is not None else None,
        written_tokens=count_of(counts.get("output_tokens")),
    )
