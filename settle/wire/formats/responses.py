"""OpenAI's Responses (https://platform.openai.com/docs/api-reference/responses)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from settle.infer.tool_calls import function_call
from settle.wire.errors import invalid, unsupported
from settle.wire.exchange import Call, Message, Reply, Request, content_text, fields_of, objects_in
from settle.wire.fields import MOST_TOKENS, Body, Name, Share, effort_arguments, validated
from settle.wire.formats import (
    RawBody,
    WireFormat,
    arguments_text,
    count_of,
    settings_of,
    tools_of,
)
from settle.wire.messages import check_messages, check_tools, choose, may_repeat, merge_turns, text_of
from settle.wire.types import ChatMessage, ChatRequest, JsonObject

PROBABILITIES = "message.output_text.logprobs"
NOT_HERE = {
    "previous_response_id": "this server stores no responses; send the whole conversation as input",
    "conversation": "this server stores no conversations; send the whole conversation as input",
    "prompt": "this server stores no prompts; send it as instructions and input",
}

Status = Literal["in_progress", "completed", "incomplete"] | None
Value = Annotated[str, Field(max_length=512)]


class Item(Body):
    """One item of a conversation. id, status: set by its maker, and of no use to a model."""

    id: Name | None = None
    status: Status = None

    def turn(self, where: str) -> ChatMessage:
        """Return the item as a message of OpenAI's chat API. Raises ApiError."""
        raise NotImplementedError


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[object]
    phase: None = None

    def turn(self, where: str) -> ChatMessage:
        role = {"developer": "system"}.get(self.role, self.role)
        return {"role": role, "content": text_of(self.content, f"{where}.content")}


class Direct(Body):
    type: Literal["direct"]


class FunctionCall(Item):
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    caller: Direct | None = None
    namespace: None = None

    def turn(self, where: str) -> ChatMessage:
        call = function_call(self.call_id, self.name, self.arguments)
        return {"role": "assistant", "content": "", "tool_calls": [call]}


class FunctionCallOutput(Item):
    type: Literal["function_call_output"]
    call_id: Name
    output: str | list[object]
    name: Name | None = None
    caller: Direct | None = None
    namespace: None = None

    def turn(self, where: str) -> ChatMessage:
        text = text_of(self.output, f"{where}.output")
        result: ChatMessage = {"role": "tool", "tool_call_id": self.call_id, "content": text}
        return result | {"name": self.name} if self.name else result


class ReasoningText(Body):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Item):
    """encrypted_content: of other servers, which this one cannot read."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: None = None

    def turn(self, where: str) -> ChatMessage:
        reasoning = "\n".join(part.text for part in self.content or self.summary)
        return {"role": "assistant", "content": "", "reasoning_content": reasoning}


ITEMS: dict[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "reasoning": ReasoningItem,
}


class Tool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    async_: Literal[False] | None = Field(None, alias="async")
    output_schema: None = None

    def to_openai(self) -> JsonObject:
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class Reasoning(Body):
    """summary: there is none; the reasoning itself is returned."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    def to_schema(self) -> JsonObject | None:
        """Return the schema of the answer, {} for any object, None for text."""
        if (self.schema_ is not None) != (self.type == "json_schema"):
            raise invalid("text.format.schema", "is for type json_schema only")
        if self.type == "text":
            return None
        return {} if self.type == "json_object" else self.schema_ or {"type": "object"}


class TextConfig(Body):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class StreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class CountBody(Body):
    """What /v1/responses/input_tokens takes."""

    input: str | Annotated[list[object], Field(min_length=1, max_length=10_000)]
    model: Name = ""
    instructions: str | None = None
    tools: Annotated[list[object], Field(max_length=512)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: object = None
    conversation: object = None
    prompt: object = None

    def to_chat(self) -> ChatRequest:
        """Return the chat request. Raises ApiError."""
        for field, why in NOT_HERE.items():
            if getattr(self, field) is not None:
                raise unsupported(field, why)
        tools, choice = choose(check_tools([tool.to_openai() for tool in self.functions()]), self.tool_choice)
        form = self.text.format if self.text else None
        return ChatRequest(
            model=self.model,
            messages=self._messages(),
            tools=tools,
            choice=choice,
            is_parallel=may_repeat(self.parallel_tool_calls, self.tool_choice),
            schema=form.to_schema() if form else None,
            arguments=effort_arguments(self.reasoning.effort if self.reasoning else None),
            trim=self.truncation == "auto",
        )

    def functions(self) -> list[Tool]:
        """Return the tools. Raises ApiError for tools that are not functions."""
        return [_tool(tool, f"tools.{number}") for number, tool in enumerate(self.tools or ())]

    def _messages(self) -> list[ChatMessage]:
        turns: list[ChatMessage] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return check_messages([*turns, {"role": "user", "content": self.input}])
        turns += [_turn(item, f"input.{number}") for number, item in enumerate(self.input)]
        # the reasoning, text and calls of an assistant are one message
        return check_messages(merge_turns(turns, ("system", "assistant")))


class ResponseBody(CountBody):
    """What /v1/responses takes."""

    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Name] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: Literal[False] | None = None
    store: bool | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Value], Field(max_length=16)] | None = None
    # bookkeeping of hosted APIs: noted in the audit, or true here anyway
    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None

    def to_chat(self) -> ChatRequest:
        request = super().to_chat()
        if self.store:
            raise unsupported("store", "this server stores no responses; send false, or leave it out")
        for wanted in self.include or ():
            if wanted != PROBABILITIES:
                raise unsupported("include", f"{wanted[:60]!r} is not supported, only {PROBABILITIES}")
        sampling = {"temperature": self.temperature, "top_p": self.top_p}
        request.sampling.update({name: value for name, value in sampling.items() if value is not None})
        top = self.top_logprobs or (0 if PROBABILITIES in (self.include or ()) else None)
        return dataclasses.replace(request, max_tokens=self.max_output_tokens, top_logprobs=top)


def _tool(value: object, where: str) -> Tool:
    kind = fields_of(value).get("type")
    if isinstance(kind, str) and kind != "function":
        raise unsupported(f"{where}.type", f"{kind[:60]} is not supported, only functions")
    return validated(Tool, value, where)


def _turn(value: object, where: str) -> ChatMessage:
    """Return an item as a message of OpenAI's chat API. Raises ApiError."""
    kind = str(fields_of(value).get("type", "message"))
    if kind not in ITEMS:
        raise unsupported(where, f"items of type {kind[:60]} are not supported")
    return validated(ITEMS[kind], value, where).turn(where)


class ResponsesFormat(WireFormat):
    """Recorded bodies: {"input", "instructions", …} and {"output": [items]}, whole or as events."""

    rank: ClassVar[int] = 15
    known: ClassVar[str] = 'OpenAI Responses: {"input", "instructions"} and {"output": […]}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "max_tokens": ("max_output_tokens",),
        "reasoning_effort": ("reasoning", "effort"),
    }

    def request(self, body: RawBody) -> Request | None:
        given = body.get("input")
        if not isinstance(given, str | list) or not given or "messages" in body or "model" not in body:
            return None
        messages: list[Message] = []
        if instructions := body.get("instructions"):
            messages.append({"role": "system", "content": str(instructions)})
        for item in [given] if isinstance(given, str) else given:
            messages += _recorded_turn({"content": item} if isinstance(item, str) else fields_of(item))
        settings = settings_of(body, ("temperature", "top_p", "tool_choice"))
        length, effort = count_of(body.get("max_output_tokens")), fields_of(body.get("reasoning")).get("effort")
        settings |= {"max_tokens": length} if length else {}
        settings |= {"reasoning_effort": effort} if effort else {}
        tools = tools_of(body.get("tools"))
        return Request(tuple(messages), tools, settings, str(body["model"]), None, self.part_name(), body)

    def reply(self, body: RawBody) -> Reply | None:
        kind = str(body.get("type"))
        if kind.startswith("response."):
            is_last = kind in ("response.completed", "response.incomplete", "response.failed")
            return is_last and self.reply(fields_of(body.get("response"))) or Reply()
        items = body.get("output")
        if not isinstance(items, list):
            return None
        reply = Reply()
        for item in objects_in(items):
            reply = reply.then(_recorded_item(item))
        counts = fields_of(body.get("usage"))
        is_cut = body.get("status") == "incomplete"
        finish = Reply(
            finish="length" if is_cut else "tool_calls" if reply.calls else "stop",
            prompt_tokens=count_of(counts.get("input_tokens")),
            written_tokens=count_of(counts.get("output_tokens")),
        )
        return reply.then(finish)


def _recorded_turn(item: RawBody) -> list[Message]:
    """Return an item as OpenAI's messages; none for one that is no turn."""
    kind = item.get("type", "message") if item else None
    if kind == "function_call":
        function = {"name": str(item.get("name")), "arguments": arguments_text(item.get("arguments"))}
        call = {"id": str(item.get("call_id")), "type": "function", "function": function}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": str(item.get("call_id")), "content": content_text(item.get("output"))}]
    if kind != "message":
        return []
    role = str(item.get("role") or "user")
    return [{"role": "system" if role == "developer" else role, "content": content_text(item.get("content"))}]


def _recorded_item(item: RawBody) -> Reply:
    kind = item.get("type")
    if kind == "reasoning":
        return Reply(reasoning=content_text(item.get("content")) or content_text(item.get("summary")))
    if kind == "function_call":
        return Reply(calls=(Call(str(item.get("name")), arguments_text(item.get("arguments"))),))
    return Reply(text=content_text(item.get("content")))
