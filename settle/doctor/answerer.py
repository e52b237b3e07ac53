"""Who is asked again: here a model of this machine in llama.cpp, in `served_model` that of a third-party server."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from settle.infer.engine import Engine
from settle.library.reference import ModelRef
from settle.wire.exchange import Reply, Request, text_of
from settle.wire.formats.openai import OpenAIFormat


class Answerer(ABC):
    """Someone who answers requests."""

    name: str  # to show
    num_bytes: int = 0  # of memory that it takes while it is open

    def open(self) -> None:  # noqa: B027 - a server runs already
        """Make it ready; calling it twice is harmless. Raises SettleError."""

    @abstractmethod
    def pieces(self, request: Request) -> Iterator[Reply]:
        """Yield the answer as it comes; closing the iterator stops the model. Raises SettleError."""

    def num_prompt_tokens(self, request: Request) -> int | None:
        """Return the tokens of the whole prompt that a request becomes; None where unknown. Raises SettleError."""
        return None

    def close(self) -> None:  # noqa: B027 - a server is not ours to end
        """End what `open` began; `open` makes it ready again."""

    def ask(
        self, request: Request, enough: Callable[[Reply], bool] | None = None, seconds: float | None = None
    ) -> Reply:
        """Return the answer.

        enough: of the answer so far, after which no more is read. seconds: after which it is cut off. Raises
        SettleError.
        """
        reply, started = Reply(), time.monotonic()
        for piece in self.pieces(request):
            reply = reply.then(piece)
            is_late = seconds is not None and time.monotonic() - started > seconds
            if is_late or (enough is not None and enough(reply)):
                break
        return reply


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
        _ = self.engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def engine(self) -> Engine:
        """llama.cpp with the model; it is open from here on."""
        if self._engine is None:
            engine = Engine(self.model.weights, self._context or CONTEXT, self._threads, adapter=self.model.adapter)
            engine.start()
            self._engine = engine
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
        arguments = {_TEMPLATE_SETTINGS[k]: value for k, value in request.settings.items() if k in _TEMPLATE_SETTINGS}
        rendered = engine.render(request.messages, request.tools, arguments)
        return engine.opened(engine.tokenize(rendered, special=True))

    def _completed(self, request: Request) -> Iterator[Reply]:
        """Complete the conversation as text, for a model without a chat template."""
        own = {name: value for name, value in request.settings.items() if name not in _TEMPLATE_SETTINGS}
        sampling = {"seed": 0, **own}
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
