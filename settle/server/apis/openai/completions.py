"""/v1/completions, as OpenAI's and LM Studio's APIs answer it."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from starlette.responses import Response

from settle.server.apis.openai.body import CompletionBody, Prompt, prompts_of
from settle.server.errors import ApiError, openai_error, unsupported
from settle.server.gateway import Call
from settle.server.http_responses import data_event, json_response, streamed
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_entry import ModelEntry
from settle.server.requests.engine import (
    COMPLETIONS_PATH,
    GrammarWatch,
    ask,
    detokenize,
    open_stream,
    read_events,
    require_possible,
)
from settle.server.requests.text_completion import answer_check, prepare
from settle.server.wire_types import Choice, Chunk, JsonObject, Logprobs, Usage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Completion:
    """A completion while it is answered. extra: fields of the answer beside OpenAI's, made from the part of it that has
    the timings."""

    call: Call
    body: CompletionBody
    entry: ModelEntry
    extra: Callable[[Chunk], JsonObject] = lambda _: {}

    async def respond(self) -> Response:
        """Raises ApiError."""
        body = self.body
        self.call.record.user = body.user or ""
        prompts = prompts_of(body.prompt)
        if body.stream:
            if len(prompts) > 1 or (body.n or 1) > 1:
                raise unsupported("stream", "one prompt and one answer at a time")
            return await streamed(self._stream(prompts[0]), self.call.record, error_event)
        return await self._whole(prompts)

    async def _whole(self, prompts: list[Prompt]) -> Response:
        body = self.body
        async with self.call.pool.use(self.entry) as loaded:
            request = await self._request(loaded)
            if (body.n or 1) > loaded.slots:
                raise unsupported("n", f"at most {loaded.slots} answers at a time")
            answers = []
            for prompt in prompts:
                require_possible([prompt], loaded)
                number = {"n": body.n} if body.n else {}
                answer = await ask(loaded, COMPLETIONS_PATH, request | {"prompt": prompt} | number)
                check = answer_check(body.to_text(), loaded, request)
                for choice in answer["choices"]:
                    check.add(choice["text"], choice["index"])
                    await check.finish(choice["finish_reason"] == "stop", choice["index"])
                if body.echo:
                    text = await _text(loaded, prompt)
                    for choice in answer["choices"]:
                        choice["text"] = text + choice["text"]
                answers.append(answer)
        every = enumerate(choice for answer in answers for choice in answer["choices"])
        choices = [_with_old_logprobs(choice | {"index": index}, body.logprobs) for index, choice in every]
        usage: Usage = {
            "prompt_tokens": sum(answer["usage"]["prompt_tokens"] for answer in answers),
            "completion_tokens": sum(answer["usage"]["completion_tokens"] for answer in answers),
            "total_tokens": sum(answer["usage"]["total_tokens"] for answer in answers),
        }
        self.call.record.usage(usage)
        fields = {"model": self.entry.id, "choices": choices, "usage": usage}
        return json_response({**answers[0], **fields, **self.extra(answers[0])})

    async def _stream(self, prompt: Prompt) -> AsyncGenerator[bytes]:
        body, wants_usage = self.body, self.body.wants_usage
        async with self.call.pool.use(self.entry) as loaded:
            require_possible([prompt], loaded)
            request = await self._request(loaded) | {"prompt": prompt, "stream": True}
            request["stream_options"] = {"include_usage": True}
            echo = await _text(loaded, prompt) if body.echo else ""
            watch, check = GrammarWatch(loaded, request), answer_check(body.to_text(), loaded, request)
            async with await open_stream(loaded, COMPLETIONS_PATH, request) as response:
                async for chunk in read_events(response, watch):
                    if chunk.get("usage"):
                        self.call.record.usage(chunk["usage"])
                        if not wants_usage:
                            del chunk["usage"]
                            if not chunk["choices"]:
                                continue
                    choices = []
                    for choice in chunk["choices"]:
                        check.add(choice.get("text"))
                        if choice.get("finish_reason"):
                            await check.finish(choice["finish_reason"] == "stop")
                        choice["text"], echo = echo + choice.get("text", ""), ""
                        choices.append(_with_old_logprobs(choice, body.logprobs))
                    extra = self.extra(chunk) if "timings" in chunk else {}
                    yield data_event({**chunk, "choices": choices, "model": self.entry.id, **extra})
        yield DONE

    async def _request(self, loaded: LoadedModel) -> JsonObject:
        """The body for llama.cpp, without the prompt. Raises ApiError."""
        request = await prepare(self.call.backend.catalogue, self.body.to_text(), self.entry, loaded)
        return request | {"model": self.entry.id}


def error_event(error: ApiError) -> bytes:
    """How a stream ends that broke off."""
    return data_event(openai_error(error)) + DONE


async def _text(loaded: LoadedModel, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else await detokenize(loaded, prompt)


def _with_old_logprobs(choice: Choice, num_wanted: int | None) -> JsonObject:
    logprobs = choice.get("logprobs")
    old = None if logprobs is None or num_wanted is None else _old_logprobs(logprobs, num_wanted)
    return {**choice, "logprobs": old}


def _old_logprobs(logprobs: Logprobs, num_wanted: int) -> JsonObject:
    """As /v1/completions has them: lists side by side."""
    tokens = logprobs["content"]
    offsets, length = [], 0
    for token in tokens:
        offsets.append(length)
        length += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{t["token"]: t["logprob"] for t in token["top_logprobs"][:num_wanted]} for token in tokens],
        "text_offset": offsets,
    }
