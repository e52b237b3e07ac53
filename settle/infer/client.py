"""Asks a model that runs in a llama.cpp child (see `server_child.py`) for answers, timings and probabilities."""

import http.client
import json
import math
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from settle.infer.child_process import Child, Json
from settle.infer.prompt_encoder import PromptEncoder
from settle.library.facts import Metadata

LORA = Mapping[str, float]  # {"id", "scale"}: how much of each adapter that the child knows
NOTHING: Mapping[str, object] = MappingProxyType({})
LETTER_BIAS = 1e3  # added to a logit that is then drawn for sure


class WholeAnswer(NamedTuple):
    """ended: by the model itself, and not for its length. tokens: that were written."""

    text: str
    ended: bool
    tokens: int


@dataclass(frozen=True)
class TimedAnswer:
    """An answer's ids, and what it took.

    seconds: that llama.cpp spent on them after the prompt. drafted, accepted: tokens that a draft proposed, and
    those that the model agreed with."""

    ids: list[int]
    seconds: float
    drafted: int
    accepted: int


class LlamaClient(PromptEncoder):
    """A model in a child that somebody else starts and ends, asked over loopback. Threads may share it.

    lora: the scale of each adapter that the child knows.
    """

    def __init__(self, child: Child, metadata: Metadata, lora: Sequence[LORA] = ()) -> None:
        super().__init__(child, metadata)
        self.lora = lora
        self._letter = next((i for i, t in enumerate(self._tokens) if t.isascii() and t.isalpha()), 0)

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 40,
        seed: int | None = None,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        sampling: Mapping[str, object] = NOTHING,
    ) -> Generator[str, None, Json]:
        """Yield pieces of the answer as they come, and return llama.cpp's last report.

        A str prompt is plain text (see `plain`). grammar: of the whole answer, in GBNF. sampling: further settings
        of how tokens are drawn, in llama.cpp's words. Closing the generator stops llama.cpp."""
        event: Json = {}
        body = self._request(prompt, max_tokens, temperature, top_p, top_k, seed, stop, grammar)
        for event in self._stream("/completion", {**body, **sampling}):
            if event.get("content"):
                yield event["content"]
        return event

    def chat_chunks(self, body: Mapping[str, object]) -> Iterator[Json]:
        """Yield the chunks of OpenAI's chat completions, by llama.cpp's own reading of the model's answer."""
        return self._stream("/v1/chat/completions", self._with_lora(body))

    def text_chunks(self, body: Mapping[str, object]) -> Iterator[Json]:
        """Yield llama.cpp's events of a completion; the prompt of `body` is ids or text."""
        return self._stream("/completion", self._with_lora(body))

    def timed(self, prompt: str | Sequence[int], max_tokens: int) -> TimedAnswer:
        """Return the likeliest answer as by `greedy`, and what it took."""
        answer = self._greedy(prompt, max_tokens)
        timings = answer["timings"]
        drafted, accepted = timings.get("draft_n") or 0, timings.get("draft_n_accepted") or 0
        return TimedAnswer(answer["tokens"], timings["predicted_ms"] / 1e3, drafted, accepted)

    def greedy(self, prompt: str | Sequence[int], max_tokens: int) -> list[int]:
        ids: list[int] = self._greedy(prompt, max_tokens)["tokens"]
        return ids

    def answer(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        grammar: str | None = None,
    ) -> WholeAnswer:
        """Return a whole answer, the likeliest one unless `temperature` is given.

        grammar: of the whole answer, in GBNF."""
        body = self._request(prompt, max_tokens, temperature, seed=seed, grammar=grammar)
        answer = self._child.post("/completion", body)
        return WholeAnswer(answer["content"], answer["stop_type"] != "limit", answer["tokens_predicted"])

    def timings(self, ids: Sequence[int], num_tokens: int) -> Mapping[str, float]:
        """Return how long llama.cpp took to read `ids` with nothing of them cached, and to make `num_tokens` more.

        Ends of a text are passed over. The keys are "prompt_n", "prompt_ms", "predicted_n" and "predicted_ms"."""
        body = self._request(ids, num_tokens) | {"cache_prompt": False, "ignore_eos": True}
        timings: Mapping[str, float] = self._child.post("/completion", body)["timings"]
        return timings

    def reading_ms(self, ids: Sequence[int]) -> float:
        """Return the milliseconds that llama.cpp took to read `ids`, except those of the prompt before."""
        milliseconds: float = self._child.post("/completion", self._request(ids, 1))["timings"]["prompt_ms"]
        return milliseconds

    def next_token_logprobs(self, ids: Sequence[int], top: int | None = None, reuse: bool = True) -> dict[int, float]:
        """Return natural log-probabilities of the token after `ids`, most likely first.

        top: how many; None = all. reuse: of what is cached of the ids; without it, the same ids have the same numbers.

        Consecutive calls whose ids extend each other reuse llama.cpp's cache and cost one token each.
        """
        # llama.cpp leaves probabilities out when it draws an end of text or a piece of a character. So it is made to
        # draw a plain letter: a bias changes what is drawn, while these probabilities are of the raw logits.
        bias = [[self._letter, LETTER_BIAS]]
        body = self._request(ids, 1)
        body |= {
            "n_probs": top or self.num_vocab,
            "post_sampling_probs": False,
            "logit_bias": bias,
            "cache_prompt": reuse,
        }
        entries = self._child.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {e["id"]: e["logprob"] if e["logprob"] is not None else -math.inf for e in entries}

    def _greedy(self, prompt: str | Sequence[int], max_tokens: int) -> Json:
        return self._child.post("/completion", self._request(prompt, max_tokens) | {"return_tokens": True})

    def _request(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = 0,
        stop: Sequence[str] = (),
        grammar: str | None = None,
    ) -> dict[str, object]:
        """Return the body of a request; the likeliest tokens unless a temperature is given."""
        extras: dict[str, object] = {"grammar": grammar} if grammar else {}
        return self._with_lora(extras) | {
            "prompt": self.plain(prompt) if isinstance(prompt, str) else list(map(int, prompt)),
            "n_predict": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": 0.0,
            "repeat_penalty": 1.0,  # a file may bring another one, which would change the likeliest tokens
            "seed": secrets.randbits(31) if seed is None else seed,
            "stop": list(stop),
            "cache_prompt": True,
        }

    def _with_lora(self, body: Mapping[str, object]) -> dict[str, object]:
        lora = self._lora()
        return {**body, "lora": lora} if lora else dict(body)

    def _lora(self) -> list[LORA]:
        return list(self.lora)

    def _stream(self, path: str, body: Mapping[str, object]) -> Iterator[Json]:
        connection, response = self._child.open(path, {**body, "stream": True})
        try:
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[len(b"data: ") :].decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            raise self._child.died() from error
        finally:
            connection.close()
