"""A chat request in the one form that every shape is translated to, and its answer as OpenAI's chunks."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from settle.server import tools as calling
from settle.server.catalogue import Entry
from settle.server.grammar import call_grammar, json_grammar, own_grammar
from settle.server.keeper import Loaded
from settle.server.refusal import Refusal, invalid, only, unsupported
from settle.server.templates import guard_template
from settle.server.upstream import ask, events, open_stream

if TYPE_CHECKING:
    from settle.server.gateway import Gateway

ROLES = {"system", "user", "assistant", "tool"}
MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "refusal"}
# of a part of a message: its text, and what APIs put beside it that is of no use to a model
PART_FIELDS = {
    "text": ("text", "cache_control"),
    "input_text": ("text", "cache_control"),
    "output_text": ("text", "annotations", "logprobs"),
    "refusal": ("refusal",),
}

OWN_ARGUMENTS = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "self"}


@dataclass(frozen=True)
class ChatRequest:
    """messages: see `check_messages`. tools, choice: see `tools.choose`. schema: of the answer, {} for any JSON object.
    sampling: in llama.cpp's words. arguments: of the template. adapters: more LoRAs by name, and their scales.
    trim: whether the oldest turns may be dropped when the prompt is too long, which the answer tells.
    tells_stop: whether the choice that a stop string ended says which, as `stopped_by`. thinking_budget: tokens of
    reasoning. is_usual_effort: the effort is what the API takes when none is given, so a model without any is no loss.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    choice: calling.Choice = "none"
    is_parallel: bool | None = None
    schema: dict[str, Any] | None = None
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    n: int = 1
    top_logprobs: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    trim: bool = False
    timings: bool = False
    tells_stop: bool = False
    thinking_budget: int | None = None
    is_usual_effort: bool = False


def check_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """Messages with texts as their content, and nothing in them that would be lost. Raises Refusal."""
    if not messages:
        raise invalid("messages", "there are none")
    return [_checked(message, f"messages.{number}") for number, message in enumerate(messages)]


async def stream(gateway: "Gateway", request: ChatRequest, entry: Entry) -> AsyncGenerator[dict[str, Any]]:
    """OpenAI's chunks; the last one has usage, and timings. Closing it stops the model. Raises Refusal."""
    async with gateway.keeper.use(entry) as loaded:
        plan = await prepare(gateway, request, entry, loaded)
        async with contextlib.aclosing(plan.chunks(gateway.keeper.session, loaded)) as chunks:
            async for chunk in chunks:
                yield chunk


async def whole(gateway: "Gateway", request: ChatRequest, entry: Entry) -> dict[str, Any]:
    """OpenAI's chat.completion. Raises Refusal."""
    async with gateway.keeper.use(entry) as loaded:
        plan = await prepare(gateway, request, entry, loaded)
        return await plan.whole(gateway.keeper.session, loaded)


class Plan:
    """How a request is put to a child whose template knows all that is asked for: llama.cpp's own chat endpoint."""

    path = "/v1/chat/completions"

    def __init__(
        self, request: ChatRequest, entry: Entry, body: dict[str, Any], trimmed: dict[str, int] | None
    ) -> None:
        self.request, self.entry, self.body, self.trimmed = request, entry, body, trimmed

    async def open(self, session: aiohttp.ClientSession, loaded: Loaded) -> aiohttp.ClientResponse:
        """The raw stream."""
        body = self.body | {"stream": True, "stream_options": {"include_usage": True}}
        return await open_stream(session, loaded, self.path, body)

    async def chunks(self, session: aiohttp.ClientSession, loaded: Loaded) -> AsyncGenerator[dict[str, Any]]:
        async with await self.open(session, loaded) as response:
            async for chunk in events(response):
                word = chunk.pop("__verbose", {}).get("stopping_word")
                for choice in chunk["choices"]:
                    _both_reasonings(choice["delta"])
                    self._tidy_logprobs(choice)
                    self._tell_stop(choice, word)
                yield self._told(chunk | {"model": self.entry.id})

    async def whole(self, session: aiohttp.ClientSession, loaded: Loaded) -> dict[str, Any]:
        answer = await ask(session, loaded, self.path, self.body) | {"model": self.entry.id}
        word = answer.pop("__verbose", {}).get("stopping_word")
        for choice in answer["choices"]:
            _both_reasonings(choice["message"])
            self._tidy_logprobs(choice)
            self._tell_stop(choice, word)
        return self._told(answer)

    def _told(self, answer: dict[str, Any]) -> dict[str, Any]:
        if self.trimmed and answer.get("usage"):
            answer["settle"] = {"trimmed": self.trimmed}
        return answer

    def _tidy_logprobs(self, choice: dict[str, Any]) -> None:
        """llama.cpp gives no probabilities at all where none but the drawn token's are asked for: so we ask for one."""
        if self.request.top_logprobs == 0 and choice.get("logprobs"):
            for token in choice["logprobs"]["content"]:
                token["top_logprobs"] = []

    def _tell_stop(self, choice: dict[str, Any], word: str | None) -> None:
        """A template has stop strings of its own, which are nobody's business."""
        if self.request.tells_stop and word in self.request.stop and choice["finish_reason"]:
            choice["stopped_by"] = word


class HelpedPlan(Plan):
    """A request with tools, to a child whose template knows none: rendered, constrained and parsed by us."""

    path = "/completion"

    async def open(self, session: aiohttp.ClientSession, loaded: Loaded) -> aiohttp.ClientResponse:
        return await open_stream(session, loaded, self.path, self.body | {"stream": True})

    async def chunks(self, session: aiohttp.ClientSession, loaded: Loaded) -> AsyncGenerator[dict[str, Any]]:
        head = self._head("chat.completion.chunk")
        first: dict[str, Any] | None = {"role": "assistant", "content": None}
        reader = calling.CallReader()
        async with await self.open(session, loaded) as response:
            async for event in events(response):
                if first is not None:  # not before: what is refused must not have begun
                    yield head | {"choices": [_choice(first)]} | _timings(self.request, event)
                    first = None
                for delta in reader.feed(event["content"]):
                    yield head | {"choices": [_choice(delta)]}
                if event["stop"]:
                    for delta in reader.end():
                        yield head | {"choices": [_choice(delta)]}
                    last = _choice({}, _reason(event, reader))
                    self._tell_stop(last, event.get("stopping_word"))
                    yield head | {"choices": [last]}
                    yield self._told(head | {"choices": []} | counts(event))

    async def whole(self, session: aiohttp.ClientSession, loaded: Loaded) -> dict[str, Any]:
        event = await ask(session, loaded, self.path, self.body)
        reader = calling.CallReader()
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for delta in [*reader.feed(event["content"]), *reader.end()]:
            if "content" in delta:
                message["content"] = (message["content"] or "") + delta["content"]
            else:
                calls = [{k: v for k, v in call.items() if k != "index"} for call in delta["tool_calls"]]
                message["tool_calls"] = message.get("tool_calls", []) + calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(event, reader)}
        self._tell_stop(choice, event.get("stopping_word"))
        return self._told(self._head("chat.completion") | {"choices": [choice]} | counts(event))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.entry.id,
            "system_fingerprint": "settle",
        }


async def prepare(gateway: "Gateway", request: ChatRequest, entry: Entry, loaded: Loaded) -> Plan:
    """How `request` is put to `loaded`. Raises Refusal for what cannot be done there."""
    if not loaded.key.template:
        raise Refusal(
            400,
            f"{entry.id} has no chat template, so it cannot take turns; /v1/completions goes on with a text",
            "no_chat_template",
            "model",
        )
    if request.n > loaded.slots:
        raise unsupported("n", f"{loaded.slots} answers at a time are the most here; ask again for more")
    check_biases(request, loaded)
    _check_reasoning(request, loaded)
    messages, is_helped = request.messages, _needs_help(request, loaded)
    if is_helped:
        if request.thinking_budget is not None:
            raise unsupported("thinking", f"not together with these tools for {entry.id}")
        if request.n > 1 or request.top_logprobs is not None:
            raise unsupported("n" if request.n > 1 else "logprobs", f"not together with tools for {entry.id}")
        has_system = loaded.caps.get("supports_system_role", True)
        messages = calling.instructed(messages, request.tools, request.choice, has_system)
    await _guard(request, loaded, messages)
    trimmed = None
    if request.trim:
        messages, trimmed = await _trim(gateway, request, loaded, messages, is_helped)
    common = request.sampling | {"lora": loaded.lora(scales(gateway, request, entry, loaded))}
    common |= {"n_predict": request.max_tokens} if request.max_tokens is not None else {}
    common |= {"stop": request.stop} if request.stop else {}
    common |= {"timings_per_token": True} if request.timings else {}
    if is_helped:
        return HelpedPlan(request, entry, common | await _help(gateway, request, loaded, messages), trimmed)
    return Plan(request, entry, common | await _chat_body(request, entry, messages, loaded.facts.ends), trimmed)


async def count(gateway: "Gateway", request: ChatRequest, entry: Entry) -> int:
    """Tokens of the prompt of a request. Raises Refusal."""
    async with gateway.keeper.use(entry) as loaded:
        return await _tokens(gateway, loaded, await rendered(gateway, request, entry, loaded))


async def rendered(gateway: "Gateway", request: ChatRequest, entry: Entry, loaded: Loaded) -> str:
    """The prompt that a request is put to the model as. Raises Refusal."""
    if not loaded.key.template:
        raise Refusal(400, f"{entry.id} has no chat template", "no_chat_template", "model")
    messages, is_helped = request.messages, _needs_help(request, loaded)
    if is_helped:
        has_system = loaded.caps.get("supports_system_role", True)
        messages = calling.instructed(messages, request.tools, request.choice, has_system)
    await _guard(request, loaded, messages)
    return await _rendered(gateway, request, loaded, messages, is_helped)


async def _guard(request: ChatRequest, loaded: Loaded, messages: list[dict]) -> None:
    """The template is run in the sandbox as llama.cpp will run it. Raises Refusal."""
    for name in request.arguments:
        if name in OWN_ARGUMENTS:
            raise invalid(f"chat_template_kwargs.{name}", "is given to every template already")
    assert loaded.key.template
    await asyncio.to_thread(guard_template, loaded.key.template, messages, request.tools, request.arguments)


async def _chat_body(request: ChatRequest, entry: Entry, messages: list[dict], ends: Sequence[int]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": entry.id, "messages": messages}
    if request.tools:
        body |= {
            "tools": request.tools,
            "tool_choice": request.choice,
            "parallel_tool_calls": request.is_parallel is not False,
        }
    if request.schema is not None:
        body["grammar"] = await json_grammar(request.schema, ends, "response_format")
    elif request.grammar:
        body["grammar"] = await own_grammar(request.grammar, ends)
    if request.arguments:
        body["chat_template_kwargs"] = request.arguments
    if request.n > 1:
        body["n"] = request.n
    if request.tells_stop and request.stop:
        body["verbose"] = True  # llama.cpp names the stop string nowhere else
    if request.thinking_budget is not None:
        body["thinking_budget_tokens"] = request.thinking_budget
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": max(request.top_logprobs, 1)}
    return body


async def _help(gateway: "Gateway", request: ChatRequest, loaded: Loaded, messages: list[dict]) -> dict[str, Any]:
    asked = {"messages": messages} | ({"chat_template_kwargs": request.arguments} if request.arguments else {})
    rendered = await ask(gateway.keeper.session, loaded, "/apply-template", asked)
    body: dict[str, Any] = {"prompt": rendered["prompt"], "cache_prompt": True}
    if not request.tools:
        return body
    is_required = request.choice == "required"
    is_parallel = request.is_parallel is True  # unasked, small models call the same function over and over
    body["grammar"] = await call_grammar(request.tools, is_required, is_parallel, loaded.facts.ends)
    return body


def _needs_help(request: ChatRequest, loaded: Loaded) -> bool:
    has_calls = bool(request.tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in request.messages)
    if not has_calls:
        return False
    if request.tools and (request.schema is not None or request.grammar):
        raise unsupported("response_format", "not together with tools: the answer is either a call or of that form")
    knows = loaded.caps.get("supports_tools") and loaded.caps.get("supports_tool_calls")
    # llama.cpp does not see to it for these templates that a call comes (llama.cpp #27217)
    is_let_off = request.choice == "required" and loaded.caps.get("supports_preserve_reasoning")
    return not knows or bool(is_let_off)


def scales(gateway: "Gateway", request: ChatRequest, entry: Entry, loaded: Loaded) -> dict[Any, float]:
    """File of an adapter → how much of it."""
    found = {entry.adapter: 1.0} if entry.adapter else {}
    for name, scale in request.adapters.items():
        other = gateway.catalogue.find(name if ":" in name or not entry.base else f"{entry.base}:{name}")
        if not other.adapter or other.adapter not in [path for path, _ in loaded.adapters]:
            raise invalid("lora", f"{other.id} is no adapter that can stand over {entry.id} with its chat template")
        found[other.adapter] = scale
    return found


async def _trim(
    gateway: "Gateway", request: ChatRequest, loaded: Loaded, messages: list[dict], is_helped: bool
) -> tuple[list[dict], dict[str, int] | None]:
    """The oldest turns dropped until the prompt and a quarter of the context, or max_tokens, fit."""
    room = loaded.context - min(request.max_tokens or loaded.context, loaded.context // 4)
    kept, before = list(messages), await _count(gateway, request, loaded, messages, is_helped)
    tokens = before
    while tokens > room:
        first = next((i for i, m in enumerate(kept[:-1]) if m["role"] != "system"), None)
        if first is None:
            break  # llama.cpp refuses what is left, with the counts
        del kept[first]
        while first < len(kept) - 1 and kept[first]["role"] != "user":  # no answer without its question
            del kept[first]
        tokens = await _count(gateway, request, loaded, kept, is_helped)
    if len(kept) == len(messages):
        return messages, None
    return kept, {"messages": len(messages) - len(kept), "tokens": before - tokens}


async def _count(
    gateway: "Gateway", request: ChatRequest, loaded: Loaded, messages: list[dict], is_helped: bool
) -> int:
    return await _tokens(gateway, loaded, await _rendered(gateway, request, loaded, messages, is_helped))


async def _rendered(
    gateway: "Gateway", request: ChatRequest, loaded: Loaded, messages: list[dict], is_helped: bool
) -> str:
    asked: dict[str, Any] = {"messages": messages}
    if request.tools and not is_helped:
        asked |= {"tools": request.tools, "tool_choice": request.choice}
    if request.arguments:
        asked["chat_template_kwargs"] = request.arguments
    return str((await ask(gateway.keeper.session, loaded, "/apply-template", asked))["prompt"])


async def _tokens(gateway: "Gateway", loaded: Loaded, prompt: str) -> int:
    body = {"content": prompt, "add_special": True, "parse_special": True}
    return len((await ask(gateway.keeper.session, loaded, "/tokenize", body))["tokens"])


def check_biases(request: ChatRequest, loaded: Loaded) -> None:
    for token, _ in request.sampling.get("logit_bias", ()):
        if token >= loaded.facts.num_vocab:
            raise invalid(f"logit_bias.{token}", f"the model has {loaded.facts.num_vocab} tokens")


def _check_reasoning(request: ChatRequest, loaded: Loaded) -> None:
    """An effort that the template does not know would be lost."""
    effort = request.arguments.get("reasoning_effort")
    template = loaded.key.template or ""
    knows = "reasoning_effort" in template or "enable_thinking" in template
    if effort not in (None, "none", "minimal", "low") and not knows and not request.is_usual_effort:
        raise unsupported("reasoning_effort", "this model has no reasoning that could be steered")
    # llama.cpp drops a budget without a word where it does not see what in an answer is reasoning
    if request.thinking_budget is not None and not loaded.caps.get("supports_preserve_reasoning"):
        raise unsupported("thinking", "this model has no reasoning that could have a budget")


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(where, "must be an object")
    only(message, MESSAGE_FIELDS, where)
    role = "system" if message.get("role") == "developer" else message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"one of {', '.join(sorted(ROLES | {'developer'}))}")
    told: dict[str, Any] = {"role": role, "content": text_of(message.get("content"), f"{where}.content")}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise invalid(f"{where}.reasoning_content", "must be a text")
    told |= {"reasoning_content": reasoning} if reasoning else {}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            if not isinstance(message[key], str):
                raise invalid(f"{where}.{key}", "must be a text")
            told[key] = message[key]
    if message.get("refusal") is not None:
        told["content"] += text_of([{"type": "refusal", "refusal": message["refusal"]}], f"{where}.refusal")
    if message.get("tool_calls"):
        if not isinstance(message["tool_calls"], list):
            raise invalid(f"{where}.tool_calls", "must be a list")
        told["tool_calls"] = [_checked_call(c, f"{where}.tool_calls.{i}") for i, c in enumerate(message["tool_calls"])]
        if role != "assistant":
            raise invalid(f"{where}.tool_calls", "only an assistant calls")
    elif role != "assistant" and message.get("content") is None:
        raise invalid(f"{where}.content", "is missing")
    return told


def _checked_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, "must be {id, type: function, function: {name, arguments}}")
    only(call, ("id", "type", "function", "index"), where)
    only(function, ("name", "arguments"), f"{where}.function")
    if call.get("type", "function") != "function" or not isinstance(call.get("id") or "", str):
        raise invalid(where, "its type must be function, and its id a text")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id") or f"call_{secrets.token_hex(12)}", "type": "function", "function": named}


def text_of(content: Any, where: str) -> str:
    """The text of a message's content, a text or OpenAI's list of parts. Raises Refusal for what is no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a text or a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in PART_FIELDS:
            said = f"{str(kind)[:40]} is not supported, this model reads text" if kind else "must have a type"
            raise unsupported(f"{where}.{number}", said)
        only(part, ("type", *PART_FIELDS[kind]), f"{where}.{number}")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise invalid(f"{where}.{number}.text", "must be a text")
        texts.append(text)
    return "\n".join(texts)


def _both_reasonings(told: dict[str, Any]) -> None:
    """Clients read the one name or the other."""
    if told.get("reasoning_content"):
        told["reasoning"] = told["reasoning_content"]


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _timings(request: ChatRequest, event: dict[str, Any]) -> dict[str, Any]:
    return {"timings": event["timings"]} if request.timings and "timings" in event else {}


def _reason(event: dict[str, Any], reader: calling.CallReader) -> str:
    if event["stop_type"] == "limit":
        return "length"
    return "tool_calls" if reader.num_calls else "stop"


def counts(event: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's usage, and timings, of the last event of a text."""
    prompt, made = event["tokens_evaluated"], event["tokens_predicted"]
    cached = event.get("timings", {}).get("cache_n", 0)
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return {"usage": usage | {"prompt_tokens_details": {"cached_tokens": cached}}, "timings": event.get("timings", {})}
