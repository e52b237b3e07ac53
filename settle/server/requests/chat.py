"""Chats: a `ChatRequest` is checked against the model that answers it, rendered, counted, and trimmed to fit."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from settle.base.files import parse_json
from settle.infer.child_process import Json
from settle.infer.tool_calls import CallReader
from settle.server.grammars import (
    CLOSE,
    OPEN,
    GrammarError,
    call_grammar,
    check_json,
    json_grammar,
    native_tools,
    own_grammar,
)
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry, check_template
from settle.server.models.model_pool import ModelPool
from settle.server.requests.chat_plan import ChatPlan, TextPlan, collect
from settle.server.requests.engine import apply_template, require_possible, tokenize
from settle.server.requests.required_calls import (
    DEFAULT_TOKENS,
    OWN_FORM,
    CallForm,
    RequiredCalls,
    template_form,
)
from settle.wire.errors import ApiError, invalid, unsupported
from settle.wire.types import ChatMessage, ChatRequest, Chunk, JsonObject, TextRequest, Tool, ToolChoice

if TYPE_CHECKING:
    from settle.server.requests.document_chat import DocumentChats

OWN_ARGUMENTS = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "self"}


@dataclass
class Backend:
    """What answers requests: the models of a server, and its collections of documents."""

    catalogue: ModelCatalogue
    pool: ModelPool

    @functools.cached_property
    def documents(self) -> "DocumentChats":
        """What answers from documents, made when it is first asked."""
        from settle.server.requests.document_chat import DocumentChats  # needs the extra `rag`

        return DocumentChats()

    async def close(self) -> None:
        """Unload all models and close all collections."""
        await self.pool.close()
        if "documents" in self.__dict__:
            await asyncio.to_thread(self.documents.close)


async def stream(backend: Backend, request: ChatRequest, entry: ModelEntry) -> AsyncGenerator[Chunk]:
    """OpenAI's chunks; the last one has usage and timings. Closing it stops the model. Raises ApiError."""
    if entry.collection:
        async with contextlib.aclosing(backend.documents.stream(backend.pool, request, entry)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with backend.pool.use(entry) as loaded:
        plan = await prepare(backend.catalogue, request, entry, loaded)
        async with contextlib.aclosing(plan.chunks(loaded)) as chunks:
            async for chunk in chunks:
                yield chunk


async def whole(backend: Backend, request: ChatRequest, entry: ModelEntry) -> Chunk:
    """OpenAI's chat.completion. Raises ApiError."""
    if entry.collection:
        return await collect(backend.documents.stream(backend.pool, request, entry))
    async with backend.pool.use(entry) as loaded:
        plan = await prepare(backend.catalogue, request, entry, loaded)
        return await plan.whole(loaded)


async def prepare(catalogue: ModelCatalogue, request: ChatRequest, entry: ModelEntry, loaded: LoadedModel) -> ChatPlan:
    """How `request` is put to `loaded`. Raises ApiError for what the model does not support."""
    if not loaded.key.template:
        message = f"{entry.id} has no chat template, so it cannot chat; use /v1/completions, which completes a text"
        raise ApiError(400, message, "no_chat_template", "model")
    if request.n > loaded.slots:
        raise unsupported("n", f"at most {loaded.slots} answers at a time; send several requests for more")
    check_sampling(request, loaded)
    _check_reasoning(request, loaded)
    prompt = await _Prompt.of(request, loaded)
    what = "a required call" if request.choice == "required" else f"tools for {entry.id}"
    for name, is_set in (
        ("thinking", request.thinking_budget is not None),
        ("n", request.n > 1),
        ("logprobs", request.top_logprobs is not None),
    ):
        if is_set and (prompt.is_emulated or prompt.form):
            raise unsupported(name, f"cannot be combined with {what}")
    await prompt.check()
    trimmed = await prompt.trim() if request.trim else None
    common = drawn_body(catalogue, request, entry, loaded) | ({"timings_per_token": True} if request.timings else {})
    if prompt.form:
        return await _required_plan(prompt, prompt.form, entry, common, trimmed)
    new_reader = functools.partial(CallReader, request.tools, _fits)
    if not prompt.is_emulated:
        body = common | await _chat_body(request, entry, prompt.messages, loaded)
        return ChatPlan(request, entry, body, trimmed, new_reader if request.tools else None)
    common |= {"prompt": await prompt.text(), "cache_prompt": True}
    if request.tools:
        common["grammar"] = await call_grammar(request.tools, request.is_parallel, loaded)
    return TextPlan(request, entry, common, trimmed, new_reader)


def drawn_body(
    catalogue: ModelCatalogue, request: ChatRequest | TextRequest, entry: ModelEntry, loaded: LoadedModel
) -> Json:
    """Return how an answer is drawn, for llama.cpp: as the request sets it, and else as is recommended for the model.

    The likeliest token is drawn as it is. Raises ApiError."""
    is_greedy = request.sampling.get("temperature") == 0
    body: Json = {"repeat_penalty": 1.0} if is_greedy else dict(loaded.facts.sampling.settings)
    body |= request.sampling | {"lora": loaded.lora_scales(scales(catalogue, request.adapters, entry, loaded))}
    body |= {"n_predict": request.max_tokens} if request.max_tokens is not None else {}
    return body | ({"stop": request.stop} if request.stop else {})


async def count(backend: Backend, request: ChatRequest, entry: ModelEntry) -> int:
    """Tokens of the prompt of a request. Raises ApiError."""
    entry.require_no_documents("its prompt contains passages that are known only once it answers")
    async with backend.pool.use(entry) as loaded:
        return await _num_tokens(loaded, await rendered(backend.catalogue, request, entry, loaded))


async def rendered(catalogue: ModelCatalogue, request: ChatRequest, entry: ModelEntry, loaded: LoadedModel) -> str:
    """Return the prompt of a request. Raises ApiError."""
    entry.require_no_documents("its prompts are made from passages")
    if not loaded.key.template:
        raise ApiError(400, f"{entry.id} has no chat template", "no_chat_template", "model")
    scales(catalogue, request.adapters, entry, loaded)  # checks the names
    prompt = await _Prompt.of(request, loaded)
    await prompt.check()
    return await prompt.text()


class _Prompt:
    """The messages of a request as one model is given them.

    form: of a call that must come. is_emulated: whether tools are text in the messages."""

    def __init__(self, request: ChatRequest, loaded: LoadedModel, form: CallForm | None, is_emulated: bool) -> None:
        self.request, self.loaded, self.form, self.is_emulated = request, loaded, form, is_emulated
        self.messages = request.messages
        if is_emulated:
            has_system = loaded.capabilities.get("supports_system_role", True)
            self.messages = _with_instructions(request.messages, request.tools, request.choice, has_system)

    @classmethod
    async def of(cls, request: ChatRequest, loaded: LoadedModel) -> "_Prompt":
        """Choose how tools are told to the model, and how it has to call one. Raises ApiError.

        llama.cpp does not enforce that a call comes: its grammar lets text pass without end. So a required call is
        written in the form of the template, or else in settle's."""
        supports_tools = all(loaded.capabilities.get(name) for name in ("supports_tools", "supports_tool_calls"))
        form = None
        if request.choice == "required":
            form = (await template_form(loaded, request.arguments) if supports_tools else None) or OWN_FORM
        if request.tools and (request.schema is not None or request.grammar):
            raise unsupported("response_format", "cannot be combined with tools")
        has_calls = bool(request.tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in request.messages)
        return cls(request, loaded, form, has_calls and (form is OWN_FORM or not supports_tools))

    async def check(self) -> None:
        """Render the template in the sandbox as llama.cpp will render it. Raises ApiError."""
        request, messages = self.request, self.messages
        for name in request.arguments:
            if name in OWN_ARGUMENTS:
                raise invalid(f"chat_template_kwargs.{name}", "is set by the server")
        # of a prompt that may be trimmed the last message stays
        require_possible((m.get("content") for m in (messages[-1:] if request.trim else messages)), self.loaded)
        await check_template(self.loaded.key.template or "", messages, request.tools, request.arguments)

    async def trim(self) -> dict[str, int] | None:
        """Drop the oldest turns until the prompt and a quarter of the context, or max_tokens, fit.

        Return how many messages and tokens were dropped."""
        limit, context = self.request.max_tokens, self.loaded.context
        room = context - min(limit or context, context // 4)
        left, before = list(self.messages), await self._count(self.messages)
        tokens = before
        while tokens > room:
            first = next((i for i, m in enumerate(left[:-1]) if m["role"] != "system"), None)
            if first is None:
                break  # llama.cpp rejects the rest, with the counts
            del left[first]
            while first < len(left) - 1 and left[first]["role"] != "user":  # no answer without its question
                del left[first]
            tokens = await self._count(left)
        num_dropped = len(self.messages) - len(left)
        if not num_dropped:
            return None
        self.messages = left
        return {"messages": num_dropped, "tokens": before - tokens}

    async def text(self) -> str:
        rendered = await self._render(self.messages)
        return self.form.prompt(rendered) if self.form else rendered

    async def _render(self, messages: list[ChatMessage]) -> str:
        request = self.request
        body: JsonObject = {"messages": messages}
        if request.tools and not self.is_emulated:
            body |= {"tools": native_tools(request.tools), "tool_choice": request.choice}
        return await apply_template(self.loaded, body | _template_arguments(request))

    async def _count(self, messages: list[ChatMessage]) -> int:
        return await _num_tokens(self.loaded, await self._render(messages))


def _with_instructions(
    messages: list[ChatMessage], tools: list[Tool], choice: ToolChoice, has_system: bool
) -> list[ChatMessage]:
    """Messages with the list of tools in the system prompt, and calls and their results as text.

    has_system: whether the template supports a system prompt; else the first message of the user begins with it.
    """
    turns = [_as_text(message) for message in messages]
    if not tools:
        return turns
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    when = "Call a function now." if choice == "required" else "If none of them is of use, answer without them."
    text = (
        f"You may call functions. To call one, write\n{OPEN}"
        '{"name": "the function", "arguments": {"its": "arguments"}}'
        f"{CLOSE}\nand nothing else. These are the functions:\n{listed}\n{when}"
    )
    if turns and turns[0]["role"] == "system":
        return [turns[0] | {"content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    if has_system or not turns:
        return [{"role": "system", "content": text}, *turns]
    return [turns[0] | {"content": f"{text}\n\n{turns[0]['content']}"}, *turns[1:]]


def _as_text(message: ChatMessage) -> ChatMessage:
    """Return a call, or the result of one, as a message that every template supports."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = "\n".join(f"{OPEN}{json.dumps(_plain(call['function']), ensure_ascii=False)}{CLOSE}" for call in calls)
    content = message.get("content")
    return {"role": message["role"], "content": f"{content}\n{written}" if content else written}


def _plain(function: dict[str, str]) -> JsonObject:
    try:
        arguments = parse_json(function.get("arguments") or "{}")
    except ValueError:
        arguments = function["arguments"]
    return {"name": function["name"], "arguments": arguments}


async def _num_tokens(loaded: LoadedModel, prompt: str) -> int:
    return len(await tokenize(loaded, prompt, add_special=True, parse_special=True))


def _template_arguments(request: ChatRequest) -> JsonObject:
    return {"chat_template_kwargs": request.arguments} if request.arguments else {}


async def _chat_body(
    request: ChatRequest, entry: ModelEntry, messages: list[ChatMessage], loaded: LoadedModel
) -> JsonObject:
    body: JsonObject = {"model": entry.id, "messages": messages}
    if request.tools:
        is_parallel = request.is_parallel
        await call_grammar(request.tools, is_parallel, loaded)  # llama.cpp would not say what it cannot keep to
        tools = native_tools(request.tools)
        body |= {"tools": tools, "tool_choice": request.choice, "parallel_tool_calls": is_parallel}
    if request.schema is not None:
        body["grammar"] = await json_grammar(request.schema, loaded, "response_format")
    elif request.grammar:
        body["grammar"] = await own_grammar(request.grammar, loaded)
    body |= _template_arguments(request)
    if request.n > 1:
        body["n"] = request.n
    if request.wants_stop and request.stop:
        body["verbose"] = True  # llama.cpp names the stop string nowhere else
    if request.thinking_budget is not None:
        body["thinking_budget_tokens"] = request.thinking_budget
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": max(request.top_logprobs, 1)}
    return body


async def _fits(schema: JsonObject, arguments: str) -> bool:
    try:
        await check_json(schema, arguments)
    except GrammarError:
        return False
    return True


async def _required_plan(
    prompt: _Prompt, form: CallForm, entry: ModelEntry, common: JsonObject, trimmed: dict[str, int] | None
) -> TextPlan:
    """Plan a request whose answer has to be a call: the model completes one in its template's form."""
    request, loaded = prompt.request, prompt.loaded
    calls = RequiredCalls(form, request.tools, request.is_parallel)
    body = common | {"prompt": await prompt.text(), "cache_prompt": True}

    async def limited_body() -> JsonObject:
        return body | {"grammar": await calls.grammar(loaded, request.max_tokens or DEFAULT_TOKENS)}

    grammar = {"grammar": await calls.grammar(loaded)}
    return TextPlan(request, entry, body | grammar, trimmed, calls.reader, limited_body)


def scales(
    catalogue: ModelCatalogue, adapters: dict[str, float], entry: ModelEntry, loaded: LoadedModel
) -> dict[Path, float]:
    """How much of each adapter to apply, by file. adapters: by name. Raises ApiError."""
    by_file = {entry.adapter: 1.0} if entry.adapter else {}
    for name, scale in adapters.items():
        other = catalogue.find(name if ":" in name or not entry.base else f"{entry.base}:{name}")
        if not other.adapter or other.adapter not in [path for path, _ in loaded.adapters]:
            raise invalid("lora", f"{other.id} is not an adapter over {entry.id} with its chat template")
        by_file[other.adapter] = scale
    return by_file


def check_sampling(request: ChatRequest | TextRequest, loaded: LoadedModel) -> None:
    """Refuse biases of unknown tokens, and probabilities beside a draft. Raises ApiError."""
    for token, _ in request.sampling.get("logit_bias", ()):
        if token >= loaded.facts.num_vocab:
            raise invalid(f"logit_bias.{token}", f"the model has {loaded.facts.num_vocab} tokens")
    # llama.cpp gives the tokens that a draft proposed a logprob of 0, and no alternatives (build 11549)
    if request.top_logprobs is not None and loaded.child.load.draft:
        raise unsupported("logprobs", "not available with a draft model; run `settle serve` without --draft")


def _check_reasoning(request: ChatRequest, loaded: LoadedModel) -> None:
    """Refuse an effort that the template does not support: it would be lost. Raises ApiError."""
    effort = request.arguments.get("reasoning_effort")
    template = loaded.key.template or ""
    knows = "reasoning_effort" in template or "enable_thinking" in template
    if effort not in (None, "none", "minimal", "low") and not knows and not request.is_default_effort:
        raise unsupported("reasoning_effort", "this model does not support it")
    # llama.cpp silently drops a budget where it does not recognise what in an answer is reasoning
    if request.thinking_budget is not None and not loaded.capabilities.get("supports_preserve_reasoning"):
        raise unsupported("thinking", "this model does not support a budget of reasoning")
