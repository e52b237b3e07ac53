"""OpenAI's chat and text completions, as llama-server, LM Studio, vLLM and most servers speak them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from settle.doctor.exchanges.exchange import Call, Reply, Request
from settle.doctor.exchanges.layouts import (
    Body,
    Layout,
    calls_of,
    content_text,
    count_of,
    finish_of,
    messages_of,
    settings_of,
    tools_of,
)

SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "frequency_penalty"),
    *("presence_penalty", "seed", "logit_bias", "mirostat", "dry_multiplier", "xtc_probability", "n_keep"),
)
_OTHERS = ("stop", "logprobs", "response_format", "grammar", "json_schema", "tool_choice", "reasoning_effort")

_LENGTHS = ("max_completion_tokens", "max_tokens", "n_predict")


class OpenAI(Layout):
    """{"model", "messages" or "prompt", …} and {"choices": […]}, whole or in pieces."""

    rank: ClassVar[int] = 30
    known: ClassVar[str] = 'OpenAI: {"messages": […], …} and {"choices": […]}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {"thinking": ("chat_template_kwargs", "enable_thinking")}

    def request(self, body: Body) -> Request | None:
        messages = messages_of(body.get("messages"))
        if messages is None and isinstance(prompt := body.get("prompt"), str) and "response" not in body:
            messages = ({"role": "user", "content": prompt},)
        if messages is None:
            return None
        settings = settings_of(body, (*SAMPLING, *_OTHERS))
        length = next(
            (body[key] for key in ("max_completion_tokens", "max_tokens", "n_predict") if body.get(key)), None
        )
        settings |= {"max_tokens": length} if isinstance(length, int) and length > 0 else {}
        settings |= {"repeat_penalty": body["repetition_penalty"]} if body.get("repetition_penalty") else {}
        arguments = body.get("chat_template_kwargs")
        if isinstance(arguments, Mapping) and "enable_thinking" in arguments:
            settings["thinking"] = bool(arguments["enable_thinking"])
        tools = tools_of(body.get("tools") or body.get("functions"))
        return Request(messages, tools, settings, str(body.get("model") or ""), layout=self.part_name(), body=body)

    def reply(self, body: Body) -> Reply | None:
        choices = body.get("choices")
        if not isinstance(choices, list):
            return None
        usage = body.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        reply = Reply(
            prompt_tokens=count_of(counts.get("prompt_tokens")),
            written_tokens=count_of(counts.get("completion_tokens")),
        )
        choice = choices[0] if choices and isinstance(choices[0], Mapping) else {}
        message = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
        if not isinstance(message, Mapping):
            return reply
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        return replace(
            reply,
            text=content_text(message.get("content")),
            reasoning=str(thought),
            calls=_calls(message),
            finish=finish_of(choice.get("finish_reason")),
            logprobs=_logprobs(choice.get("logprobs")),
        )

    def body(self, request: Request) -> dict[str, object]:
        """The body that asks for this."""
        body: dict[str, object] = {"model": request.model} if request.model else {}
        body["messages"] = list(request.messages)
        body |= {"tools": list(request.tools)} if request.tools else {}
        for name, value in request.settings.items():
            if name != "thinking":
                body[name] = value
            else:
                body["chat_template_kwargs"] = {"enable_thinking": value}
        return body

    def reply_body(self, reply: Reply) -> dict[str, object]:
        """The body that answers with this."""
        calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in reply.calls]
        message = {"role": "assistant", "content": reply.text}
        message |= {"reasoning_content": reply.reasoning} if reply.reasoning else {}
        choice = {"message": message | ({"tool_calls": calls} if calls else {}), "finish_reason": reply.finish or None}
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.written_tokens}
        return {"choices": [choice], "usage": usage}


def _logprobs(value: object) -> tuple[float, ...]:
    tokens = value.get("content") if isinstance(value, Mapping) else None
    found = [token.get("logprob") for token in tokens or () if isinstance(token, Mapping)]
    return tuple(float(number) for number in found if isinstance(number, int | float))


def _calls(message: Body) -> tuple[Call, ...]:
    old = message.get("function_call")  # of OpenAI's first form
    return calls_of(message.get("tool_calls") or ([{"function": old}] if isinstance(old, Mapping) else []))
