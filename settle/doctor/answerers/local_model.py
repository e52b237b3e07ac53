"""A model of this machine, asked by llama.cpp as its server answers clients."""

from collections.abc import Iterator

from settle.doctor.answerers import Answerer
from settle.infer.engine import Engine
from settle.library.reference import ModelRef
from settle.wire.exchange import Reply, Request, text_of
from settle.wire.formats.openai import OpenAIFormat

CONTEXT = 4096  # tokens, where nobody asks for more
_TEMPLATE_SETTINGS = {"thinking": "enable_thinking", "reasoning_effort": "reasoning_effort"}


class LocalModel(Answerer):
    """A model of this machine. context: tokens that the user runs it with, or None."""

    def __init__(self, model: ModelRef, context: int | None = None, threads: int | None = None) -> None:
        self.name, self.model = model.name, model
        self.num_bytes = model.weights.stat().st_size
        self._context, self._threads = context, threads
        self._engine: Engine | None = None

    def open(self) -> None:
        if self._engine is None:
            engine = Engine(self.model.weights, self._context or CONTEXT, self._threads, adapter=self.model.adapter)
            engine.start()
            self._engine = engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def engine(self) -> Engine:
        """llama.cpp with the model; it is open from here on."""
        self.open()
        assert self._engine is not None
        return self._engine

    def pieces(self, request: Request) -> Iterator[Reply]:
        if not self.engine.takes_turns:
            return self._completed(request)
        openai = OpenAIFormat()
        body = {"seed": 0, **openai.body(request), "stream_options": {"include_usage": True}}
        return (reply for chunk in self.engine.chat_chunks(body) if (reply := openai.reply(chunk)) is not None)

    def num_prompt_tokens(self, request: Request) -> int:
        return len(self.prompt(request))

    def prompt(self, request: Request) -> list[int]:
        """Return the ids of the prompt that a request becomes."""
        engine = self.engine
        if not engine.takes_turns:
            return engine.plain(_plain_prompt(request))
        rendered = engine.render(request.messages, request.tools, _arguments(request))
        return engine.opened(engine.tokenize(rendered, special=True))

    def _completed(self, request: Request) -> Iterator[Reply]:
        """Complete the conversation as text, for a model without a chat template."""
        sampling = _sampling(request)
        sampling["n_predict"] = sampling.pop("max_tokens", -1)
        sampling |= {"n_probs": 1, "post_sampling_probs": False} if sampling.pop("logprobs", False) else {}
        for event in self.engine.text_chunks({"prompt": self.engine.plain(_plain_prompt(request)), **sampling}):
            ended = event.get("stop")
            yield Reply(
                text=str(event.get("content") or ""),
                finish=("length" if event.get("stop_type") == "limit" else "stop") if ended else "",
                prompt_tokens=event.get("tokens_evaluated") if ended else None,
                written_tokens=event.get("tokens_predicted") if ended else None,
                logprobs=tuple(float(token["logprob"]) for token in event.get("completion_probabilities") or ()),
            )


def _plain_prompt(request: Request) -> str:
    return "\n\n".join(text for message in request.messages if (text := text_of(message))) + "\n\n"


def _sampling(request: Request) -> dict[str, object]:
    own = {name: value for name, value in request.settings.items() if name not in _TEMPLATE_SETTINGS}
    return {"seed": 0, **own}


def _arguments(request: Request) -> dict[str, object]:
    """Return the arguments of the chat template."""
    return {_TEMPLATE_SETTINGS[name]: value for name, value in request.settings.items() if name in _TEMPLATE_SETTINGS}
