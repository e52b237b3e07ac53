"""What Ollama's API takes (https://docs.ollama.com/api), and how it is put in the form that all shapes share."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from settle.server.errors import Refusal, invalid, unsupported
from settle.server.models.model_catalogue import Entry, capabilities, template_of
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.fields import MOST_TOKENS, Body, Name, Sampling, Stop, stops
from settle.server.requests.messages import check_messages
from settle.server.requests.text_completion import TextRequest
from settle.server.requests.tools import check_tools, choose

DURATION = re.compile(r"-?(\d{1,12}(\.\d{1,9})?(ns|us|µs|ms|s|m|h))+|-?\d{1,12}(\.\d{1,9})?")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

KeepAlive = float | Annotated[str, Field(max_length=64)] | None
Format = Literal["", "json"] | dict[str, Any] | None


class Loading(Body):
    """Options on how a model is loaded.

    All but num_ctx say where and how fast it runs, which is for who starts the server to say: `settle serve --threads`.
    Clients send them only when a person set them, or with Ollama's own defaults, so what is done anyway is accepted
    (see HOLDS) and anything else is refused: a setting that is taken and not obeyed looks like a slow machine.
    """

    HOLDS: ClassVar[dict[str, tuple[Any, ...]]] = {
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
        """Raises Refusal for what would not be as it is asked for."""
        for name, values in self.HOLDS.items():
            value = getattr(self, name, None)
            if value is not None and value not in values:
                held = str(values[0]).lower()
                raise unsupported(f"options.{name}", f"is {held} here; who starts `settle serve` decides on it")


class Options(Loading, Sampling):
    """How a model answers: Ollama's names, and whatever else llama.cpp knows."""

    HOLDS: ClassVar[dict[str, tuple[Any, ...]]] = Loading.HOLDS | {
        "tfs_z": (1.0,),  # off; llama.cpp has dropped it
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

    def sampling(self, context: int) -> dict[str, Any]:
        """In llama.cpp's words. context: in tokens, which Ollama calls -1."""
        asked = self.llama()
        if asked.get("repeat_last_n") == -1:
            asked["repeat_last_n"] = context
        return asked


class Asked(Body):
    """What chat and generate have in common."""

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
    def given(self) -> Options:
        return self.options or Options()

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        """{} for any JSON object."""
        return None if self.format in (None, "") else {} if self.format == "json" else self.format  # type: ignore[return-value]

    @property
    def probabilities(self) -> int | None:
        """Raises Refusal."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_turns(
        self, messages: list[Any], entry: Entry, context: int, tools: list[Any] | None = None, choose_by: Any = None
    ) -> ChatRequest:
        """Raises Refusal."""
        known, choice = choose(check_tools(tools or []), choose_by)
        if known and self.schema_asked is not None:
            raise invalid("format", "not together with tools: the answer is either a call or of that form")
        return ChatRequest(
            model=entry.id,
            messages=check_messages(messages),
            tools=known,
            choice=choice,
            schema=self.schema_asked,
            max_tokens=self.given.max_tokens,
            stop=stops(self.given.stop),
            top_logprobs=self.probabilities,
            sampling=self.given.sampling(context),
            arguments=_thinking(self.think, entry),
            trim=bool(self.truncate),
        )


class ChatBody(Asked):
    """What /api/chat takes."""

    messages: Annotated[list[Any], Field(max_length=10_000)] | None = None
    tools: Annotated[list[Any], Field(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None  # Ollama has none; as OpenAI's

    def to_chat(self, entry: Entry, context: int) -> ChatRequest:
        """Raises Refusal."""
        turns = _openai_messages(self.messages or [])
        return self.to_turns(turns, entry, context, self.tools, self.tool_choice)


class GenerateBody(Asked):
    """What /api/generate takes."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    # a template and the tokens of an earlier talk: both belong to the model's own turns, which /api/chat takes whole
    template: Literal[""] | None = None
    context: Annotated[list[int], Field(max_length=0)] | None = None

    def is_text(self, entry: Entry) -> bool:
        """Whether the prompt is gone on with as it is: asked for so, or by a model that takes no turns."""
        return bool(self.raw or self.suffix) or not template_of(entry)

    def to_chat(self, entry: Entry, context: int) -> ChatRequest:
        """Raises Refusal."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.to_turns([*system, {"role": "user", "content": self.prompt or ""}], entry, context)

    def to_text(self, entry: Entry, context: int) -> TextRequest:
        """Raises Refusal."""
        for name in ("system", "think", "truncate"):
            if getattr(self, name):
                raise unsupported(name, "not where a text is gone on with as it is, without turns")
        return TextRequest(
            prompt="" if self.suffix else self.prompt or "",
            before=(self.prompt or "") if self.suffix else "",
            suffix=self.suffix or None,
            schema=self.schema_asked,
            schema_name="format",
            max_tokens=self.given.max_tokens,
            stop=stops(self.given.stop),
            top_logprobs=self.probabilities,
            sampling=self.given.sampling(context),
        )


class EmbedBody(Body):
    """What /api/embed takes."""

    model: Name = ""
    input: str | Annotated[list[str], Field(max_length=2048)] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    options: Loading | None = None
    keep_alive: KeepAlive = None


class OldEmbedBody(Body):
    """What /api/embeddings takes, which Ollama keeps for old clients."""

    model: Name = ""
    prompt: str = ""
    options: Loading | None = None
    keep_alive: KeepAlive = None


def seconds(keep_alive: KeepAlive) -> float | None:
    """Of idle time: 0 unloads at once, below 0 never. None leaves it as it is. Raises Refusal."""
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
    if not abs(value) <= 1e12:
        raise invalid("keep_alive", "is longer than a computer lives")
    return value


def _thinking(think: bool | str | None, entry: Entry) -> dict[str, Any]:
    """Arguments of the template. Raises Refusal where it could not obey."""
    if think is None:
        return {}
    if "thinking" not in capabilities(entry):
        if think is False:
            return {}
        raise unsupported("think", f"{entry.id} does not support thinking")
    template = template_of(entry) or ""
    if isinstance(think, str):
        if "reasoning_effort" not in template:
            raise unsupported("think", f"{entry.id} thinks or does not: true or false")
        return {"reasoning_effort": think, "enable_thinking": True}
    if not think and "enable_thinking" not in template:
        raise unsupported("think", f"{entry.id} cannot be kept from thinking")
    return {"enable_thinking": think}


MESSAGE_FIELDS = {"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"}


def _openai_messages(messages: list[Any]) -> list[Any]:
    """Ollama's messages in OpenAI's form. Calls have no ids in Ollama's: they are numbered, and each result is that of
    the first call of its name which has none yet. Raises Refusal."""
    told: list[Any] = []
    open_calls: list[tuple[str, str]] = []  # name and id
    number = 0
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        if not isinstance(message, dict):
            raise invalid(where, "must be an object")
        unknown = {*message} - MESSAGE_FIELDS
        if unknown:
            raise invalid(where, f"unrecognized: {', '.join(sorted(map(str, unknown)))[:200]}")
        if message.get("images"):
            raise unsupported(f"{where}.images", "this model reads text")
        said = {"role": message.get("role"), "content": message.get("content")}
        said |= {"reasoning_content": message["thinking"]} if message.get("thinking") else {}
        if message.get("tool_calls"):
            said["tool_calls"] = calls = _calls(message["tool_calls"], f"{where}.tool_calls", number)
            number += len(calls)
            open_calls += [(call["function"]["name"], call["id"]) for call in calls]
        name, of = message.get("tool_name"), message.get("tool_call_id")
        if said["role"] == "tool":
            matching = [call for call in open_calls if of in (None, call[1]) and name in (None, call[0])]
            if matching:
                open_calls.remove(matching[0])
            said |= {"tool_call_id": of or (matching[0][1] if matching else f"call{number:05}")}
            said |= {"name": name} if name is not None else {}
        elif name is not None or of is not None:
            raise invalid(where, "only a message of the role tool is the result of a call")
        told.append(said)
    return told


def _calls(calls: Any, where: str, number: int) -> list[dict[str, Any]]:
    """number: of the first. Ids are nine letters and digits: some templates take no others."""
    if not isinstance(calls, list):
        raise invalid(where, "must be a list")
    told = []
    for place, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}.{place}", "must be {function: {name, arguments}}")
        unknown = {*call} - {"id", "type", "function"} or {*function} - {"name", "arguments", "index", "description"}
        if unknown:
            raise invalid(f"{where}.{place}", f"unrecognized: {', '.join(sorted(map(str, unknown)))[:200]}")
        given = {"name": function["name"], "arguments": function.get("arguments") or {}}
        told.append({"id": call.get("id") or f"call{number + place:05}", "type": "function", "function": given})
    return told


def check_context(asked: int | None, context: int, known: int, entry: Entry) -> None:
    """Whether a num_ctx is at hand. context: in tokens, as served; known: as the model was made for. Raises Refusal."""
    if asked is None or asked <= context:
        return
    said = f"options.num_ctx: {entry.id} is served with a context of {context} tokens, {asked} were asked for"
    fix = f"`settle serve --context {asked}` gives more" if asked <= known else f"it was made for {known} at most"
    counts = {"n_ctx": context}
    raise Refusal(400, f"{said}; {fix}", "context_length_exceeded", "options.num_ctx", counts)
