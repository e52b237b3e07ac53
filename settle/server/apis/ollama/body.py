"""The bodies of Ollama's API (https://docs.ollama.com/api), and how they become requests."""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from settle.infer.child_process import Json
from settle.server.errors import ApiError, invalid, reject_unknown, unsupported
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_facts import capabilities, template_of
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.fields import MOST_TOKENS, Body, Name, Sampling, Stop, stops
from settle.server.requests.messages import check_messages
from settle.server.requests.text_completion import TextRequest
from settle.server.requests.tools import check_tools, choose
from settle.server.wire_types import JsonObject

DURATION = re.compile(r"-?(\d{1,12}(\.\d{1,9})?(ns|us|µs|ms|s|m|h))+|-?\d{1,12}(\.\d{1,9})?")
MOST_SECONDS = 1e12  # of keep_alive
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

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
        """Raises ApiError for options that this server does not fulfil."""
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
        entry: ModelEntry,
        context: int,
        tools: Sequence[object] | None = None,
        tool_choice: object = None,
    ) -> ChatRequest:
        """Raises ApiError."""
        known, choice = choose(check_tools(tools or []), tool_choice)
        if known and self.json_schema is not None:
            raise invalid("format", "cannot be combined with tools")
        return ChatRequest(
            model=entry.id,
            messages=check_messages(messages),
            tools=known,
            choice=choice,
            schema=self.json_schema,
            max_tokens=self.options_or_default.max_tokens,
            stop=stops(self.options_or_default.stop),
            top_logprobs=self.probabilities,
            sampling=self.options_or_default.sampling(context),
            arguments=_thinking(self.think, entry),
            trim=bool(self.truncate),
        )


class ChatBody(AnswerBody):
    """What /api/chat takes."""

    messages: Annotated[list[object], Field(max_length=10_000)] | None = None
    tools: Annotated[list[object], Field(max_length=512)] | None = None
    tool_choice: str | JsonObject | None = None  # OpenAI's; Ollama has none

    def to_chat(self, entry: ModelEntry, context: int) -> ChatRequest:
        """Raises ApiError."""
        turns = _openai_messages(self.messages or [])
        return self.to_turns(turns, entry, context, self.tools, self.tool_choice)


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

    def is_text(self, entry: ModelEntry) -> bool:
        """Whether the prompt is completed as it is: because of a field, or because the model has no chat template."""
        return bool(self.raw or self.suffix) or not template_of(entry)

    def to_chat(self, entry: ModelEntry, context: int) -> ChatRequest:
        """Raises ApiError."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.to_turns([*system, {"role": "user", "content": self.prompt or ""}], entry, context)

    def to_text(self, entry: ModelEntry, context: int) -> TextRequest:
        """Raises ApiError."""
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


def _thinking(think: bool | str | None, entry: ModelEntry) -> JsonObject:
    """Arguments of the template. Raises ApiError where the template does not support them."""
    if think is None:
        return {}
    if "thinking" not in capabilities(entry):
        if think is False:
            return {}
        raise unsupported("think", f"{entry.id} does not support thinking")
    template = template_of(entry) or ""
    if isinstance(think, str):
        if "reasoning_effort" not in template:
            raise unsupported("think", f"{entry.id} has no levels of thinking: true or false")
        return {"reasoning_effort": think, "enable_thinking": True}
    if not think and "enable_thinking" not in template:
        raise unsupported("think", f"{entry.id} always thinks")
    return {"enable_thinking": think}


MESSAGE_FIELDS = {"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"}


def _openai_messages(messages: Sequence[object]) -> list[JsonObject]:
    """Ollama's messages in OpenAI's form. Calls have no ids in Ollama's: they are numbered, and each result belongs to
    the first call of its name that has none yet. Raises ApiError."""
    converted: list[JsonObject] = []
    open_calls: list[tuple[str, str]] = []  # name and id
    number = 0
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        if not isinstance(message, dict):
            raise invalid(where, "must be an object")
        reject_unknown(message, MESSAGE_FIELDS, where)
        if message.get("images"):
            raise unsupported(f"{where}.images", "this model reads text")
        turn: JsonObject = {"role": message.get("role"), "content": message.get("content")}
        turn |= {"reasoning_content": message["thinking"]} if message.get("thinking") else {}
        if message.get("tool_calls"):
            turn["tool_calls"] = calls = _calls(message["tool_calls"], f"{where}.tool_calls", number)
            number += len(calls)
            open_calls += [(call["function"]["name"], call["id"]) for call in calls]
        name, call_id = message.get("tool_name"), message.get("tool_call_id")
        if turn["role"] == "tool":
            matching = [call for call in open_calls if call_id in (None, call[1]) and name in (None, call[0])]
            if matching:
                open_calls.remove(matching[0])
            turn |= {"tool_call_id": call_id or (matching[0][1] if matching else f"call{number:05}")}
            turn |= {"name": name} if name is not None else {}
        elif name is not None or call_id is not None:
            raise invalid(where, "only a message of the role tool is the result of a call")
        converted.append(turn)
    return converted


def _calls(calls: object, where: str, number: int) -> list[Json]:
    """number: of the first. Ids are nine letters and digits: some templates accept no others."""
    if not isinstance(calls, list):
        raise invalid(where, "must be a list")
    converted: list[Json] = []
    for place, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}.{place}", "must be {function: {name, arguments}}")
        reject_unknown(call, ("id", "type", "function"), f"{where}.{place}")
        reject_unknown(function, ("name", "arguments", "index", "description"), f"{where}.{place}")
        called = {"name": function["name"], "arguments": function.get("arguments") or {}}
        converted.append({"id": call.get("id") or f"call{number + place:05}", "type": "function", "function": called})
    return converted


def check_context(wanted: int | None, context: int, longest: int, entry: ModelEntry) -> None:
    """Raises ApiError when a num_ctx is longer than the context. context: in tokens, as served; longest: that the model
    supports."""
    if wanted is None or wanted <= context:
        return
    message = f"options.num_ctx: {entry.id} is served with a context of {context} tokens, but {wanted} are wanted"
    fix = f"run `settle serve --context {wanted}`" if wanted <= longest else f"the model supports {longest} at most"
    counts = {"n_ctx": context}
    raise ApiError(400, f"{message}; {fix}", "context_length_exceeded", "options.num_ctx", counts)
