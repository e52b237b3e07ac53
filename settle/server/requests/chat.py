"""Chats: what all shapes ask for in one form (`plans.ChatRequest`), made ready for a child, counted, cut to fit."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from settle.server.errors import Refusal, invalid, require_no_documents, unsupported
from settle.server.guard.template_check import guard_template
from settle.server.models.model_catalogue import Entry
from settle.server.models.model_pool import Loaded
from settle.server.requests import tools as calling
from settle.server.requests.chat_request import ChatRequest, HelpedPlan, Plan
from settle.server.requests.grammar import call_grammar, json_grammar, own_grammar
from settle.server.requests.upstream import ask

if TYPE_CHECKING:
    from settle.server.gateway import Gateway

OWN_ARGUMENTS = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "self"}


async def stream(gateway: "Gateway", request: ChatRequest, entry: Entry) -> AsyncGenerator[dict[str, Any]]:
    """OpenAI's chunks; the last one has usage, and timings. Closing it stops the model. Raises Refusal."""
    if entry.collection:
        from settle.server.requests import document_chat

        async with contextlib.aclosing(document_chat.stream(gateway, request, entry)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with gateway.keeper.use(entry) as loaded:
        plan = await prepare(gateway, request, entry, loaded)
        async with contextlib.aclosing(plan.chunks(gateway.keeper.session, loaded)) as chunks:
            async for chunk in chunks:
                yield chunk


async def whole(gateway: "Gateway", request: ChatRequest, entry: Entry) -> dict[str, Any]:
    """OpenAI's chat.completion. Raises Refusal."""
    if entry.collection:
        from settle.server.requests import document_chat

        return await document_chat.whole(gateway, request, entry)
    async with gateway.keeper.use(entry) as loaded:
        plan = await prepare(gateway, request, entry, loaded)
        return await plan.whole(gateway.keeper.session, loaded)


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
    check_probabilities(request.top_logprobs, loaded)
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
    return Plan(request, entry, common | await _chat_body(request, entry, messages, loaded), trimmed)


async def count(gateway: "Gateway", request: ChatRequest, entry: Entry) -> int:
    """Tokens of the prompt of a request. Raises Refusal."""
    require_no_documents(entry, "the passages that are read with a question are not known before it is answered")
    async with gateway.keeper.use(entry) as loaded:
        return await _tokens(gateway, loaded, await rendered(gateway, request, entry, loaded))


async def rendered(gateway: "Gateway", request: ChatRequest, entry: Entry, loaded: Loaded) -> str:
    """The prompt that a request is put to the model as. Raises Refusal."""
    require_no_documents(entry, "its prompt is made from passages, in pieces")
    if not loaded.key.template:
        raise Refusal(400, f"{entry.id} has no chat template", "no_chat_template", "model")
    scales(gateway, request, entry, loaded)  # the names must be right, though nothing is read with them
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


async def _chat_body(request: ChatRequest, entry: Entry, messages: list[dict], loaded: Loaded) -> dict[str, Any]:
    body: dict[str, Any] = {"model": entry.id, "messages": messages}
    if request.tools:
        body |= {
            "tools": request.tools,
            "tool_choice": request.choice,
            "parallel_tool_calls": request.is_parallel is not False,
        }
    if request.schema is not None:
        body["grammar"] = await json_grammar(request.schema, loaded, "response_format")
    elif request.grammar:
        body["grammar"] = await own_grammar(request.grammar, loaded)
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
    body["grammar"] = await call_grammar(request.tools, is_required, is_parallel, loaded)
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


def check_probabilities(top: int | None, loaded: Loaded) -> None:
    """llama.cpp gives the tokens that a draft proposed a logprob of 0, and no others beside them (build 11549)."""
    if top is not None and loaded.child.load.draft:
        raise unsupported("logprobs", "not where a draft proposes tokens; `settle serve` without --draft tells them")


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
