"""A GGUF file running in llama.cpp, in a child process (see `child.py`)."""

import errno
import http.client
import json
import math
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from settle.base.errors import EngineError
from settle.data.tokenizers_alike import require_same_tokens
from settle.formats.gguf import read_gguf
from settle.formats.lora_gguf import read_lora, require_fit
from settle.infer.context import fitting_context
from settle.infer.process import Child, Load

TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Timed:
    """An answer's ids, the seconds that llama.cpp spent on them after the prompt, and how many tokens a draft proposed
    and the model agreed with."""

    ids: list[int]
    seconds: float
    drafted: int
    accepted: int


class Engine:
    """One model loaded in one llama.cpp child, spoken to over loopback with a random key.

    Use it as a context manager. The file is checked in Python before the child may open it.

    context: the largest number of tokens of prompt and answer together; None takes the model's own, as far
    as memory has room for it.
    ready_seconds: how long loading may take before it counts as failed.
    adapter: a LoRA in a GGUF file of its own, served over `path` without a merge, with the chat template that it was
    trained with if it brings one, `adapter_scale` times: an attribute that may change from one request to the next, and
    0 is the model without it.
    slots: how many requests, from as many threads, are answered at the same time; each has `context` tokens.
    draft: a small GGUF of the same tokenizer that proposes up to `draft_tokens` tokens for the model to agree with, as
    long as it gives each at least the probability `draft_sure`.
    Raises FormatError for a file that is not a sound GGUF, or an adapter of another model, UsageError for a draft with
    another tokenizer, ResourceError when the context asked for does not fit into memory, EngineError when llama.cpp
    refuses the file or dies.
    """

    def __init__(
        self,
        path: Path | str,
        context: int | None = None,
        threads: int | None = None,
        ready_seconds: float = 300.0,
        adapter: Path | str | None = None,
        adapter_scale: float = 1.0,
        slots: int = 1,
        draft: Path | str | None = None,
        draft_tokens: int = 4,
        draft_sure: float = 0.0,
    ) -> None:
        self.path = Path(path)
        weights = read_gguf(self.path)
        self.metadata = weights.metadata
        self.adapter_scale = adapter_scale
        self.adapter = Path(adapter) if adapter else None
        if self.adapter:
            lora = read_lora(self.adapter)
            require_fit(lora, weights, (self.adapter.name, self.path.name))
            template = lora.metadata.get(TEMPLATE)
            if template:
                self.metadata = {**weights.metadata, TEMPLATE: template}
        self.context = fitting_context(self.path.name, self.metadata, context, slots)
        tokens = self.metadata.get("tokenizer.ggml.tokens", [])
        self.num_vocab = len(tokens)
        self._letter = next((i for i, t in enumerate(tokens) if t.isascii() and t.isalpha()), 0)
        adapters = (self.adapter,) if self.adapter else ()
        template = self.metadata.get(TEMPLATE) if self.metadata is not weights.metadata else None
        load = Load(self.path, self.context, slots, adapters, template, threads)
        if draft:
            require_same_tokens(weights.metadata, read_gguf(Path(draft)).metadata, (self.path.name, Path(draft).name))
            load = replace(load, draft=Path(draft), draft_tokens=draft_tokens, draft_sure=draft_sure)
        self._child = Child(load, ready_seconds)

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the child and waits until it has loaded the model."""
        self._child.start()

    def close(self) -> None:
        """Ends the child. Calling it twice is harmless."""
        self._child.close()

    def alive(self) -> bool:
        """Whether the child runs."""
        return self._child.alive()

    @property
    def pid(self) -> int | None:
        """Of the child."""
        return self._child.pid

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

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Messages (`{"role", "content"}`), and the tools they may call, through the file's own chat template, ready
        for an answer."""
        body: dict[str, Any] = {"messages": list(messages)}
        return self._post("/apply-template", body | ({"tools": list(tools)} if tools else {}))["prompt"]

    def turns(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of rendered messages; llama.cpp leaves out of them the token that opens a text where the file says that
        every text has it."""
        ids = self.tokenize(self.render(messages, tools), special=True)
        return self._opened(ids) if self._is_opened else ids

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 40,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Generator[str]:
        """Yields pieces of the answer as they come. A str prompt is plain text (see `plain`). Closing the generator
        stops llama.cpp."""
        for event in self._stream(self._request(prompt, max_tokens, temperature, top_p, top_k, seed, stop)):
            if event.get("content"):
                yield event["content"]

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
        self, prompt: str | Sequence[int], max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> tuple[str, bool]:
        """A whole answer, the likeliest one unless `temperature` is given; and whether the model ended it by itself."""
        answer = self._post("/completion", self._request(prompt, max_tokens, temperature, 1.0, 0, seed, ()))
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

    def _request(self, prompt, max_tokens, temperature, top_p, top_k, seed, stop) -> dict:
        ids = self.plain(prompt) if isinstance(prompt, str) else list(map(int, prompt))
        served = {"lora": [{"id": 0, "scale": self.adapter_scale}]} if self.adapter else {}
        return served | {
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

    @property
    def _is_opened(self) -> bool:
        """Whether the file says that every text begins with a token of its own."""
        is_spm = self.metadata.get("tokenizer.ggml.model") == "llama"  # llama.cpp's default where it is not said
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", is_spm))

    def _opened(self, ids: list[int]) -> list[int]:
        opening = self.metadata.get("tokenizer.ggml.bos_token_id")
        return ids if opening is None or ids[:1] == [opening] else [opening, *ids]

    def _open(self, path: str, body: dict) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        if not self._child.is_open:
            raise EngineError("the engine is not running", "use it inside `with Engine(path) as engine:`")
        connection = http.client.HTTPConnection(self._child.address.hostname, self._child.address.port)
        headers = {"Authorization": f"Bearer {self._child.api_key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, OSError) and error.errno in (
                errno.ENETUNREACH,
                errno.EHOSTUNREACH,
                errno.EADDRNOTAVAIL,
            ):
                raise EngineError(
                    f"llama.cpp runs, and cannot be reached at {self._child.address.hostname}: {error.strerror}",
                    "it needs the loopback interface, though no other network: `ip link set lo up`",
                ) from None
            raise self._child.died() from error
        if response.status != 200:
            detail = response.read().decode("utf-8", "replace")
            connection.close()
            raise EngineError(f"llama.cpp refused {path}: {detail[:500]}", self._refusal_fix(detail))
        return connection, response

    def _post(self, path: str, body: dict) -> dict:
        connection, response = self._open(path, body)
        try:
            # errors="replace": a byte-level token can be half a character.
            return json.loads(response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            raise self._child.died() from error
        finally:
            connection.close()

    def _stream(self, body: dict) -> Iterator[dict]:
        connection, response = self._open("/completion", body | {"stream": True})
        try:
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[len(b"data: ") :].decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            raise self._child.died() from error
        finally:
            connection.close()

    def _refusal_fix(self, detail: str) -> str:
        if "context" in detail:
            return f"shorten the prompt: {self.path.name} was opened with a context of {self.context} tokens"
        return "check the request"
