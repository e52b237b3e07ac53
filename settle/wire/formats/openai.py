"""OpenAI's chat and text completions, as llama-server, LM Studio, vLLM and most servers speak them too."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from settle.wire.errors import invalid, reject_unknown
from settle.wire.exchange import Reply, Request, content_text, fields_of, objects_in
from settle.wire.fields import MOST_TOKENS, Adapter, Body, Name, Sampling, Stop, effort_arguments, stops
from settle.wire.formats import (
    RawBody,
    WireFormat,
    calls_of,
    count_of,
    finish_of,
    messages_of,
    settings_of,
    tools_of,
)
from settle.wire.messages import check_messages, check_tools, choose, may_repeat
from settle.wire.types import ChatRequest, JsonObject, TextRequest

MOST_INPUTS = 2048
DEFAULT_COMPLETION_TOKENS = 16  # of a completion, as OpenAI's

Prompt = str | list[int]

# fields of recorded requests that are kept under their own names
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "frequency_penalty"),
    *("presence_penalty", "seed", "logit_bias", "mirostat", "dry_multiplier", "xtc_probability", "n_keep"),
)
_OTHERS = ("stop", "logprobs", "response_format", "grammar", "json_schema", "tool_choice", "reasoning_effort")
_LENGTHS = ("max_completion_tokens", "max_tokens", "n_predict")


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatBody(Sampling):
    """What /v1/chat/completions takes."""

    messages: Annotated[list[object], Field(max_length=10_000)]
    model: Name = ""
    max_tokens: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[object], Field(max_length=512)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonObject | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: JsonObject | None = None
    grammar: Annotated[str, Field(max_length=1 << 20)] | None = None
    json_schema: JsonObject | None = None
    lora: Annotated[list[Adapter], Field(max_length=16)] | None = None
    timings_per_token: bool | None = None
    # bookkeeping of hosted APIs: noted in the audit, or true here anyway
    user: Name | None = None
    safety_identifier: Name | None = None
    metadata: JsonObject | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def to_chat(self) -> ChatRequest:
        """Return the chat request. Raises ApiError."""
        tools, choice = choose(check_tools(self.tools or []), self.tool_choice)
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        schema = _schema(self.response_format) if self.response_format else self.json_schema
        if schema is not None and self.grammar:
            raise invalid("grammar", "cannot be combined with a JSON schema")
        return ChatRequest(
            model=self.model,
            messages=check_messages(self.messages),
            tools=tools,
            choice=choice,
            is_parallel=may_repeat(self.parallel_tool_calls, self.tool_choice),
            schema=schema,
            grammar=self.grammar,
            max_tokens=None if limit == -1 else limit,
            stop=stops(self.stop),
            n=self.n or 1,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            sampling=self.llama(),
            arguments=(self.chat_template_kwargs or {}) | effort_arguments(self.reasoning_effort),
            adapters={adapter.id: adapter.scale for adapter in self.lora or []},
            timings=bool(self.timings_per_token),
        )


class CompletionBody(Sampling):
    """What /v1/completions takes."""

    prompt: str | list[str] | list[int] | list[list[int]]
    model: Name = ""
    max_tokens: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    n_predict: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Literal[1] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    grammar: Annotated[str, Field(max_length=1 << 20)] | None = None
    json_schema: JsonObject | None = None
    lora: Annotated[list[Adapter], Field(max_length=16)] | None = None
    user: Name | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit(self) -> int:
        limit = self.max_tokens if self.max_tokens is not None else self.n_predict
        return DEFAULT_COMPLETION_TOKENS if limit is None else limit

    def to_text(self) -> TextRequest:
        """All but the prompt. Raises ApiError."""
        return TextRequest(
            prompt="",
            schema=self.json_schema,
            grammar=self.grammar,
            max_tokens=self.limit,
            stop=stops(self.stop),
            top_logprobs=self.logprobs,
            sampling=self.llama(),
            adapters={adapter.id: adapter.scale for adapter in self.lora or []},
        )


class EmbeddingBody(Body):
    """What /v1/embeddings takes."""

    input: str | list[str] | list[int] | list[list[int]]
    model: Name = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    user: Name | None = None


def prompts_of(prompt: str | Sequence[str | int | list[int]]) -> list[Prompt]:
    """Each prompt: a text or token ids. Raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    tokens = [token for token in prompt if isinstance(token, int)]
    prompts: list[Prompt] = [tokens] if tokens else [one for one in prompt if not isinstance(one, int)]
    if not prompts or len(prompts) > MOST_INPUTS:
        raise invalid("prompt", f"1 to {MOST_INPUTS} prompts")
    return prompts


def _schema(form: JsonObject) -> JsonObject | None:
    """Return the JSON schema of `response_format`, {} for any object, None for text. Raises ApiError."""
    where = "response_format"
    kind = form.get("type")
    if kind == "text":
        reject_unknown(form, ("type",), where)
        return None
    schema: object
    if kind == "json_object":  # llama.cpp's clients put a schema here
        reject_unknown(form, ("type", "schema"), where)
        schema = form.get("schema", {})
    elif kind == "json_schema":
        reject_unknown(form, ("type", "json_schema"), where)
        where = f"{where}.json_schema"
        inner = form.get("json_schema")
        if not isinstance(inner, dict):
            raise invalid(where, "must be an object")
        reject_unknown(inner, ("name", "description", "schema", "strict"), where)
        schema = inner.get("schema")
    else:
        raise invalid(f"{where}.type", "one of text, json_object, json_schema")
    if not isinstance(schema, dict):
        raise invalid(f"{where}.schema", "must be an object")
    return schema or ({} if kind == "json_object" else {"type": "object"})


class OpenAIFormat(WireFormat):
    """Recorded bodies: {"model", "messages" or "prompt", …} and {"choices": […]}, whole or in pieces."""

    rank: ClassVar[int] = 30
    known: ClassVar[str] = 'OpenAI: {"messages": […], …} and {"choices": […]}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {"thinking": ("chat_template_kwargs", "enable_thinking")}

    def request(self, body: RawBody) -> Request | None:
        messages = messages_of(body.get("messages"))
        if messages is None and isinstance(prompt := body.get("prompt"), str) and "response" not in body:
            messages = ({"role": "user", "content": prompt},)
        if messages is None:
            return None
        settings = settings_of(body, (*SAMPLING, *_OTHERS))
        length = count_of(next((body[name] for name in _LENGTHS if body.get(name)), None)) or 0
        settings |= {"max_tokens": length} if length > 0 else {}
        settings |= {"repeat_penalty": body["repetition_penalty"]} if body.get("repetition_penalty") else {}
        arguments = fields_of(body.get("chat_template_kwargs"))
        if "enable_thinking" in arguments:
            settings["thinking"] = bool(arguments["enable_thinking"])
        tools = tools_of(body.get("tools") or body.get("functions"))
        return Request(messages, tools, settings, str(body.get("model") or ""), api=self.part_name(), body=body)

    def reply(self, body: RawBody) -> Reply | None:
        choices = body.get("choices")
        if not isinstance(choices, list):
            return None
        counts = fields_of(body.get("usage"))
        choice = fields_of(choices[0] if choices else None)
        message = fields_of(choice.get("message") or choice.get("delta") or {"content": choice.get("text")})
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        old_call = {"function": message.get("function_call")}  # of OpenAI's first form
        logprobs = [token.get("logprob") for token in objects_in(fields_of(choice.get("logprobs")).get("content"))]
        return Reply(
            text=content_text(message.get("content")),
            reasoning=str(thought),
            calls=calls_of(message.get("tool_calls") or [old_call]),
            finish=finish_of(choice.get("finish_reason")),
            prompt_tokens=count_of(counts.get("prompt_tokens")),
            written_tokens=count_of(counts.get("completion_tokens")),
            logprobs=tuple(float(number) for number in logprobs if isinstance(number, int | float)),
        )

    def body(self, request: Request) -> JsonObject:
        """Return the body that asks for this."""
        body: JsonObject = {"model": request.model} if request.model else {}
        body["messages"] = list(request.messages)
        body |= {"tools": list(request.tools)} if request.tools else {}
        for name, value in request.settings.items():
            if name != "thinking":
                body[name] = value
            else:
                body["chat_template_kwargs"] = {"enable_thinking": value}
        return body

    def reply_body(self, reply: Reply) -> JsonObject:
        """Return the body of a whole reply."""
        calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in reply.calls]
        message = {"role": "assistant", "content": reply.text}
        message |= {"reasoning_content": reply.reasoning} if reply.reasoning else {}
        choice = {"message": message | ({"tool_calls": calls} if calls else {}), "finish_reason": reply.finish or None}
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.written_tokens}
        return {"choices": [choice], "usage": usage}
