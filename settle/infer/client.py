"""A model that runs in a llama.cpp child (see `server_child.py`): what it is asked, and how it answers."""

import http.client
import json
import math
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from settle.infer.child_process import Child
from settle.library.facts import takes_turns


@dataclass(frozen=True)
class Timed:
    """An answer's ids, the seconds that llama.cpp spent on them after the prompt, and how many tokens a draft proposed
    and the model agreed with."""

    ids: list[int]
    seconds: float
    drafted: int
    accepted: int


class Running:
    """A model in a child that somebody starts and ends, spoken to over loopback. Threads may share it.

    metadata: of its GGUF file, with the chat template that it takes turns by. lora: how much of each adapter that the
    child knows, in llama.cpp's words.
    """

    def __init__(self, child: Child, metadata: Mapping[str, Any], lora: Sequence[Mapping[str, Any]] = ()) -> None:
        self._child, self.metadata, self.lora = child, metadata, lora
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        self.num_vocab = len(tokens)
        self._letter = next((i for i, t in enumerate(tokens) if t.isascii() and t.isalpha()), 0)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._child.load.context

    def tokenize(self, text: str, special: bool = False, opening: bool = False) -> list[int]:
        """Ids of a text. special: whether `<|end|>` and its like in it become tokens; opening: whether llama.cpp may
        put before it what the file says a text is opened with."""
        body = {"content": text, "add_special": opening, "parse_special": special}
        return self._post("/tokenize", body)["tokens"]

    def plain(self, text: str) -> list[int]:
        """Ids of a text to go on with: no template, special tokens in it are text, and before it the token that opens
        a text where the file says that its model expects one, or where there is no text."""
        ids = self.tokenize(text)
        return ids if ids and not self._is_opened else self._opened(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return self._post("/detokenize", {"tokens": list(map(int, ids))})["content"]

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), **arguments: Any
    ) -> str:
        """Messages (`{"role", "content"}`), and the tools they may call, through the file's own chat template, ready
        for an answer. arguments: of the template."""
        body: dict[str, Any] = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        body |= {"chat_template_kwargs": arguments} if arguments else {}
        return self._post("/apply-template", body)["prompt"]

    def turns(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of rendered messages; llama.cpp leaves out of them the token that opens a text where the file says that
        every text has it."""
        return self.opened(self.tokenize(self.render(messages, tools), special=True))

    def opened(self, ids: list[int]) -> list[int]:
        """Ids with the token before them that opens a text, where the file says that every text has it."""
        return self._opened(ids) if self._is_opened else ids

    @property
    def takes_turns(self) -> bool:
        """Whether it answers by a chat template; otherwise it goes on with a text."""
        return takes_turns(self.metadata)

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
        sampling: Mapping[str, Any] = MappingProxyType({}),
    ) -> Generator[str, None, Mapping[str, Any]]:
        """Yields pieces of the answer as they come, and returns what llama.cpp tells at its end. A str prompt is plain
        text (see `plain`). grammar: of the whole answer, in GBNF. sampling: more on how tokens are drawn, in
        llama.cpp's words. Closing the generator stops llama.cpp."""
        event: dict[str, Any] = {}
        body = self._request(prompt, max_tokens, temperature, top_p, top_k, seed, stop, grammar)
        for event in self._stream({**body, **sampling}):
            if event.get("content"):
                yield event["content"]
        return event

    def timed(self, prompt: str | Sequence[int], max_tokens: int) -> "Timed":
        """The likeliest answer as by `greedy`, with what it took."""
        body = self._request(prompt, max_tokens, 0.0, 1.0, 0, 0, ()) | {"return_tokens": True}
        said = self._post("/completion", body)
        took = said["timings"]
        return Timed(
            said["tokens"], took["predicted_ms"] / 1e3, took.get("draft_n") or 0, took.get("draft_n_accepted") or 0
        )

    def greedy(self, prompt: str | Sequence[int], max_tokens: int) -> list[int]:
        """The ids of the likeliest answer."""
        body = self._request(prompt, max_tokens, 0.0, 1.0, 0, 0, ()) | {"return_tokens": True}
        return self._post("/completion", body)["tokens"]

    def answer(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        grammar: str | None = None,
    ) -> tuple[str, bool]:
        """A whole answer, the likeliest one unless `temperature` is given; and whether the model ended it by itself.
        grammar: of the whole answer, in GBNF."""
        answer = self._post("/completion", self._request(prompt, max_tokens, temperature, 1.0, 0, seed, (), grammar))
        return answer["content"], answer["stop_type"] != "limit"

    def timings(self, ids: Sequence[int], num_tokens: int) -> Mapping[str, float]:
        """How long llama.cpp took to read `ids` with nothing of them cached, and to make `num_tokens` more, ends of a
        text passed over: "prompt_n", "prompt_ms", "predicted_n", "predicted_ms"."""
        body = self._request(ids, num_tokens, 0.0, 1.0, 0, 0, ()) | {"cache_prompt": False, "ignore_eos": True}
        timings: Mapping[str, float] = self._post("/completion", body)["timings"]
        return timings

    def next_token_logprobs(self, ids: Sequence[int], top: int | None = None) -> dict[int, float]:
        """Natural log-probabilities of the token after `ids`, most likely first. top: how many; None = all.

        Consecutive calls whose ids extend each other reuse llama.cpp's cache and cost one token each.
        """
        body = self._request(ids, 1, 0.0, 1.0, 0, 0, ())
        # llama.cpp leaves probabilities out when it draws an end of text or a piece of a character. So it is made to
        # draw a plain letter: a bias changes what is drawn, while these probabilities are of the raw logits.
        body |= {"n_probs": top or self.num_vocab, "post_sampling_probs": False, "logit_bias": [[self._letter, 1e3]]}
        entries = self._post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {e["id"]: e["logprob"] if e["logprob"] is not None else -math.inf for e in entries}

    def _request(self, prompt, max_tokens, temperature, top_p, top_k, seed, stop, grammar=None) -> dict:
        ids = self.plain(prompt) if isinstance(prompt, str) else list(map(int, prompt))
        lora = self._lora()
        more = ({"lora": lora} if lora else {}) | ({"grammar": grammar} if grammar else {})
        return more | {
            "prompt": ids,
            "n_predict": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": 0.0,
            "seed": secrets.randbits(31) if seed is None else seed,
            "stop": list(stop),
            "cache_prompt": True,
        }

    def _lora(self) -> list[Mapping[str, Any]]:
        return list(self.lora)

    @property
    def _is_opened(self) -> bool:
        """Whether the file says that every text begins with a token of its own."""
        is_spm = self.metadata.get("tokenizer.ggml.model") == "llama"  # llama.cpp's default where it is not said
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", is_spm))

    def _opened(self, ids: list[int]) -> list[int]:
        opening = self.metadata.get("tokenizer.ggml.bos_token_id")
        return ids if opening is None or ids[:1] == [opening] else [opening, *ids]

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._child.post(path, body)

    def _stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        connection, response = self._child.open("/completion", {**body, "stream": True})
        try:
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[len(b"data: ") :].decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            raise self._child.died() from error
        finally:
            connection.close()
