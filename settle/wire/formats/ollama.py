"""Ollama's /api/chat, /api/generate and /api/embed (https://docs.ollama.com/api)."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from settle.wire.errors import invalid, unsupported
from settle.wire.exchange import Message, Reply, Request, content_text, fields_of
from settle.wire.fields import MOST_TOKENS, Body, Name, Sampling, Stop, stops, validated
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
from settle.wire.formats.openai import SAMPLING
from settle.wire.messages import check_messages, check_tools, choose
from settle.wire.types import ChatRequest, JsonObject, TextRequest

DURATION = re.compile(r"-?(\d{1,12}(\.\d{1,9})?(ns|us|µs|ms|s|m|h))+|-?\d{1,12}(\.\d{1,9})?")
MOST_SECONDS = 1e12  # of keep_alive
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

# fields of recorded requests: those that no other API has, and settings
_OWN = ("options", "think", "keep_alive", "format", "raw", "suffix", "system", "template")
_SAMPLING = {*SAMPLING, "stop", "num_keep"}

KeepAlive = float | Annotated[str, Field(max_length=64)] | None
Format = Literal["", "json"] | JsonObject | None


class LoadOptions(Body):
    """Options on how a model is loaded.

    All but num_ctx say where and how fast it runs, which is decided at the start: `settle serve --threads`. Clients
    send them only when a person set them, or with Ollama's own defaults. So what is true anyway is accepted (see
    FIXED) and anything else is an error: a setting that is accepted but not obeyed looks like a slow machine.
    """

    FIXED: ClassVar[dict[str, tuple[object, ...]]] = {
        "num_thread": (0,),  # leaves it to the server
        "num_gpu": (-1,),
        "main_gpu": (0,),
        "num_batch": (512,),  # tokens that go through the model at a time
        "numa": (False,),
        "low_vram": (False,),
        "f16_kv": (True,),
        "vocab_only": (False,),
        "logits_all": (False,),
        "embedding_only": (False,),
        "use_mmap": (True,),
        "use_mlock": (False,),
    }

    num_ctx: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    num_thread: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_batch: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    vocab_only: bool | None = None
    logits_all: bool | None = None
    embedding_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None

    def check(self) -> None:
        """Refuse options that this server does not fulfil. Raises ApiError."""
        for name, values in self.FIXED.items():
            value = getattr(self, name, None)
            if value is not None and value not in values:
                fixed = str(values[0]).lower()
                raise unsupported(f"options.{name}", f"is {fixed} here; it is set when `settle serve` is started")


class Options(LoadOptions, Sampling):
    """How a model answers: Ollama's options, and all others of llama.cpp."""

    FIXED: ClassVar[dict[str, tuple[object, ...]]] = LoadOptions.FIXED | {
        "tfs_z": (1.0,),  # off; llama.cpp has removed it
        "penalize_newline": (True,),  # a newline is a token like any other
    }

    num_predict: Annotated[int, Field(ge=-2, le=MOST_TOKENS)] | None = None
    # tokens that stay when a full context is shifted; it never is, so all of them stay
    num_keep: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    stop: Stop = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None

    @property
    def max_tokens(self) -> int | None:
        """None for Ollama's -1 (no limit) and -2 (until the context is full): the context ends both."""
        if self.num_predict == 0:
            raise invalid("options.num_predict", "at least 1; -1 is no limit")
        return self.num_predict if (self.num_predict or -1) > 0 else None

    def sampling(self, context: int) -> JsonObject:
        """Under llama.cpp's names. context: in tokens, which Ollama calls -1."""
        fields = self.llama()
        if self.repeat_last_n == -1:
            fields["repeat_last_n"] = context
        return fields


class Answerer(NamedTuple):
    """The model that answers a request, as far as the request's meaning depends on it."""

    model: str
    context: int  # tokens
    arguments: JsonObject  # of its chat template


class AnswerBody(Body):
    """The fields that chat and generate share."""

    model: Name = ""
    stream: bool | None = None
    format: Format = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: bool | Literal["low", "medium", "high"] | None = None
    truncate: bool | None = None
    shift: Literal[False] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def options_or_default(self) -> Options:
        return self.options or Options()

    @property
    def json_schema(self) -> JsonObject | None:
        """{} for any JSON object."""
        if isinstance(self.format, dict):
            return self.format
        return {} if self.format == "json" else None

    @property
    def probabilities(self) -> int | None:
        """Raises ApiError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_turns(
        self,
        messages: Sequence[object],
        answerer: Answerer,
        tools: Sequence[object] | None = None,
        tool_choice: object = None,
    ) -> ChatRequest:
        """Return the chat request. Raises ApiError."""
        known, choice = choose(check_tools(tools or []), tool_choice)
        if known and self.json_schema is not None:
            raise invalid("format", "cannot be combined with tools")
        return ChatRequest(
            model=answerer.model,
            messages=check_messages(messages),
            tools=known,
            choice=choice,
            schema=self.json_schema,
            max_tokens=self.options_or_default.max_tokens,
            stop=stops(self.options_or_default.stop),
            top_logprobs=self.probabilities,
            sampling=self.options_or_default.sampling(answerer.context),
            arguments=answerer.arguments,
            trim=bool(self.truncate),
        )


class ChatBody(AnswerBody):
    """What /api/chat takes."""

    messages: Annotated[list[object], Field(max_length=10_000)] | None = None
    tools: Annotated[list[object], Field(max_length=512)] | None = None
    tool_choice: str | JsonObject | None = None  # OpenAI's; Ollama has none

    def to_chat(self, answerer: Answerer) -> ChatRequest:
        """Return the chat request. Raises ApiError."""
        turns = _openai_messages(self.messages or [])
        return self.to_turns(turns, answerer, self.tools, self.tool_choice)


class GenerateBody(AnswerBody):
    """What /api/generate takes."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Annotated[list[object], Field(max_length=0)] | None = None
    # a template and the tokens of an earlier chat: both belong to chats, which /api/chat takes whole
    template: Literal[""] | None = None
    context: Annotated[list[int], Field(max_length=0)] | None = None

    def to_chat(self, answerer: Answerer) -> ChatRequest:
        """Return the chat request. Raises ApiError."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.to_turns([*system, {"role": "user", "content": self.prompt or ""}], answerer)

    def to_text(self, context: int) -> TextRequest:
        """Return the request of a text that is completed as it is. Raises ApiError."""
        for name in ("system", "think", "truncate"):
            if getattr(self, name):
                raise unsupported(name, "is for chats only, and this request completes a text")
        return TextRequest(
            prompt="" if self.suffix else self.prompt or "",
            before=(self.prompt or "") if self.suffix else "",
            suffix=self.suffix or None,
            schema=self.json_schema,
            schema_name="format",
            max_tokens=self.options_or_default.max_tokens,
            stop=stops(self.options_or_default.stop),
            top_logprobs=self.probabilities,
            sampling=self.options_or_default.sampling(context),
        )


class EmbedBody(Body):
    """What /api/embed takes."""

    model: Name = ""
    input: str | Annotated[list[str], Field(max_length=2048)] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    options: LoadOptions | None = None
    keep_alive: KeepAlive = None


class OldEmbedBody(Body):
    """What /api/embeddings takes, which Ollama has for old clients."""

    model: Name = ""
    prompt: str = ""
    options: LoadOptions | None = None
    keep_alive: KeepAlive = None


def keep_alive_seconds(keep_alive: KeepAlive) -> float | None:
    """How long an idle model stays: 0 unloads it at once, below 0 never; None changes nothing. Raises ApiError."""
    if keep_alive is None:
        return None
    if not isinstance(keep_alive, str):
        value = float(keep_alive)
    elif keep_alive == "":
        return None
    elif not DURATION.fullmatch(keep_alive):
        raise invalid("keep_alive", 'seconds, or a duration such as "5m"')
    else:
        pieces = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)?", keep_alive)
        value = sum(float(number) * SECONDS[unit or "s"] for number, unit in pieces)
        value = -value if keep_alive.startswith("-") else value
    if not abs(value) <= MOST_SECONDS:
        raise invalid("keep_alive", f"too large (max {MOST_SECONDS:.0e} s)")
    return value


class CalledFunction(Body):
    """The function of a call. arguments: an object."""

    name: str
    arguments: object = None
    index: object = None
    description: object = None


class WrittenCall(Body):
    """A call that a model made; Ollama's have no ids."""

    id: str | None = None
    type: object = None
    function: CalledFunction


class OllamaTurn(Body):
    """A message of Ollama's chats."""

    role: object = None
    content: object = None
    thinking: str | None = None
    images: list[object] | None = None
    tool_calls: list[WrittenCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def _openai_messages(messages: Sequence[object]) -> list[JsonObject]:
    """Return Ollama's messages in OpenAI's form. Raises ApiError.

    Calls have no ids in Ollama's: they are numbered, and each result belongs to the first call of its name that has
    none. Ids are nine letters and digits: some templates accept no others."""
    converted: list[JsonObject] = []
    open_calls: list[tuple[str, str]] = []  # name and id
    number = 0
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        turn = validated(OllamaTurn, message, where)
        if turn.images:
            raise unsupported(f"{where}.images", "this model reads text")
        fields: JsonObject = {"role": turn.role, "content": turn.content}
        fields |= {"reasoning_content": turn.thinking} if turn.thinking else {}
        if turn.tool_calls:
            calls = [(call.function, call.id or f"call{n:05}") for n, call in enumerate(turn.tool_calls, number)]
            number += len(calls)
            open_calls += [(function.name, id) for function, id in calls]
            fields["tool_calls"] = [
                {"id": id, "function": {"name": function.name, "arguments": function.arguments or {}}}
                for function, id in calls
            ]
        if turn.role == "tool":
            name, call_id = turn.tool_name, turn.tool_call_id
            matching = [call for call in open_calls if call_id in (None, call[1]) and name in (None, call[0])]
            if matching:
                open_calls.remove(matching[0])
            fields |= {"tool_call_id": call_id or (matching[0][1] if matching else f"call{number:05}")}
            fields |= {"name": name} if name is not None else {}
        elif turn.tool_name is not None or turn.tool_call_id is not None:
            raise invalid(where, "only a message of the role tool is the result of a call")
        converted.append(fields)
    return converted


class OllamaFormat(WireFormat):
    """Recorded bodies: {"messages" or "prompt", "options": {…}} and {"message" or "response", "done"}."""

    rank: ClassVar[int] = 20
    known: ClassVar[str] = 'Ollama: {"messages" or "prompt", "options": {…}} and {"message": {…}, "done": …}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "max_tokens": ("options", "num_predict"),
        "context": ("options", "num_ctx"),
        "thinking": ("think",),
        **{name: ("options", name) for name in _SAMPLING},
    }

    def request(self, body: RawBody) -> Request | None:
        if not any(key in body for key in _OWN):
            return None
        messages = messages_of(body.get("messages"))
        if messages is None and isinstance(prompt := body.get("prompt"), str) and "response" not in body:
            system = body.get("system")
            first = ({"role": "system", "content": str(system)},) if system else ()
            messages = (*first, {"role": "user", "content": prompt})
        if messages is None:
            return None
        options = fields_of(body.get("options"))
        settings = settings_of(options, sorted(_SAMPLING))
        length = count_of(options.get("num_predict")) or 0
        settings |= {"max_tokens": length} if length > 0 else {}
        settings |= {"thinking": bool(body["think"])} if body.get("think") is not None else {}
        form = body.get("format")
        if form == "json":
            settings["response_format"] = {"type": "json_object"}
        elif isinstance(form, Mapping):
            schema = {"name": "answer", "schema": form}
            settings["response_format"] = {"type": "json_schema", "json_schema": schema}
        name, context = str(body.get("model") or ""), count_of(options.get("num_ctx"))
        return Request(messages, tools_of(body.get("tools")), settings, name, context, self.part_name(), body)

    def reply(self, body: RawBody) -> Reply | None:
        if "done" not in body or not ("message" in body or "response" in body):
            return None
        message = fields_of(body.get("message")) or {"content": body.get("response")}
        reason = body.get("done_reason") or ("stop" if body.get("done") else None)
        calls = calls_of(message.get("tool_calls"))
        return Reply(
            content_text(message.get("content")),
            str(message.get("thinking") or body.get("thinking") or ""),
            calls,
            "tool_calls" if calls and reason == "stop" else finish_of(reason),
            count_of(body.get("prompt_eval_count")),
            count_of(body.get("eval_count")),
        )

    def body(self, request: Request) -> JsonObject:
        body: JsonObject = {"model": request.model, "messages": [_own_message(m) for m in request.messages]}
        body |= {"tools": list(request.tools)} if request.tools else {}
        options: JsonObject = {"num_ctx": request.context} if request.context else {}
        for name, value in request.settings.items():
            if name == "thinking":
                body["think"] = value
            elif name == "response_format":
                body["format"] = fields_of(fields_of(value).get("json_schema")).get("schema", "json")
            elif name == "max_tokens" or name in _SAMPLING:
                options["num_predict" if name == "max_tokens" else name] = value
        return body | ({"options": options} if options else {})


def _own_message(message: Message) -> JsonObject:
    """Return a message as Ollama takes it: arguments of calls are objects, and reasoning has another name."""
    own = {key: value for key, value in message.items() if key in ("role", "content")}
    calls = calls_of(message.get("tool_calls"))
    own |= {"tool_calls": [{"function": {"name": c.name, "arguments": c.values or {}}} for c in calls]} if calls else {}
    return own | ({"thinking": message["reasoning_content"]} if message.get("reasoning_content") else {})
