"""Asks a model that runs in a llama.cpp child (see `server_child.py`) for answers, timings and probabilities."""

import http.client
import json
import math
import re
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from settle.formats import Metadata
from settle.infer.child_process import Body, Child, Json
from settle.library.facts import takes_turns

Message = Body  # {"role", "content", …}


LORA = Mapping[str, float]  # {"id", "scale"}: how much of each adapter that the child knows
NOTHING: Body = MappingProxyType({})
# for llguidance, within a JSON Schema: one space where people put one, none elsewhere. Where whitespace is free, small
# models write it without end.
JSON_SPACING: Body = MappingProxyType(
    {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
)
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


class LlamaClient:
    """A model in a child that somebody else starts and ends, asked over loopback. Threads may share it.

    metadata: of its GGUF file, with the chat template by which it takes turns. lora: the scale of each adapter that the
    child knows.
    """

    def __init__(self, child: Child, metadata: Metadata, lora: Sequence[LORA] = ()) -> None:
        self._child, self.metadata, self.lora = child, metadata, lora
        tokens = metadata.get("tokenizer.ggml.tokens")
        self._tokens: list[str] = tokens if isinstance(tokens, list) else []
        self._letter = next((i for i, t in enumerate(self._tokens) if t.isascii() and t.isalpha()), 0)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._child.load.context

    @property
    def num_vocab(self) -> int:
        return len(self._tokens)

    @property
    def takes_turns(self) -> bool:
        """True when the model answers through a chat template; otherwise it completes text."""
        return takes_turns(self.metadata)

    def tokenize(self, text: str, special: bool = False, opening: bool = False) -> list[int]:
        """Return the ids of a text.

        special: whether `<|end|>` and its like in it become tokens; opening: whether llama.cpp may put before it the
        token that opens a text by the file's own settings.
        """
        body = {"content": text, "add_special": opening, "parse_special": special}
        ids: list[int] = self._child.post("/tokenize", body)["tokens"]
        return ids

    def plain(self, text: str) -> list[int]:
        """Return the ids of a text to complete: no template, and special tokens in it are text.

        Before it comes the token that opens a text where the file says that its model expects one, or where there is no
        text.
        """
        ids = self.tokenize(text)
        return ids if ids and not self._is_opened else self._opened(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        text: str = self._child.post("/detokenize", {"tokens": list(map(int, ids))})["content"]
        return text

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] = (),
        arguments: Body = NOTHING,
    ) -> str:
        """Render messages (`{"role", "content"}`), and the tools they may call, ready for an answer.

        It goes through the file's own chat template. arguments: of the template.
        """
        body: Json = {"messages": list(messages)}
        body |= {"tools": list(tools)} if tools else {}
        body |= {"chat_template_kwargs": dict(arguments)} if arguments else {}
        prompt: str = self._child.post("/apply-template", body)["prompt"]
        return prompt

    def turns(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> list[int]:
        """Return the ids of rendered messages.

        llama.cpp leaves out the token that opens a text where the file says that every text has it.
        """
        return self.opened(self.tokenize(self.render(messages, tools), special=True))

    def opened(self, ids: list[int]) -> list[int]:
        """Ids behind the token that opens a text, where the file says that every text has it."""
        return self._opened(ids) if self._is_opened else ids

    @property
    def _is_opened(self) -> bool:
        """True when the file says that every text begins with a token of its own."""
        model = self.metadata.get("tokenizer.ggml.model")
        is_opened = self.metadata.get("tokenizer.ggml.add_bos_token", model == "llama")  # llama.cpp's default
        return bool(is_opened) or model == "gemma4"  # whatever the file says

    def _opened(self, ids: list[int]) -> list[int]:
        opening = self.metadata.get("tokenizer.ggml.bos_token_id")
        return [opening, *ids] if isinstance(opening, int) and ids[:1] != [opening] else ids

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
        sampling: Body = NOTHING,
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

    def chat_chunks(self, body: Body) -> Iterator[Json]:
        """Yield the chunks of OpenAI's chat completions, by llama.cpp's own reading of the model's answer."""
        return self._stream("/v1/chat/completions", self._with_lora(body))

    def text_chunks(self, body: Body) -> Iterator[Json]:
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
        sampling: Body = NOTHING,
    ) -> WholeAnswer:
        """Return a whole answer, the likeliest one unless `temperature` is given.

        grammar: of the whole answer, in GBNF. sampling: further settings, in llama.cpp's words."""
        body = self._request(prompt, max_tokens, temperature, seed=seed, grammar=grammar) | dict(sampling)
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
    ) -> Json:
        """Return the body of a request; the likeliest tokens unless a temperature is given."""
        return self._with_lora({"grammar": grammar} if grammar else {}) | {
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

    def _with_lora(self, body: Body) -> Json:
        lora = self._lora()
        return {**body, "lora": lora} if lora else dict(body)

    def _lora(self) -> list[LORA]:
        return list(self.lora)

    def _stream(self, path: str, body: Body) -> Iterator[Json]:
        connection, response = self._child.open(path, {**body, "stream": True})
        try:
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[len(b"data: ") :].decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            raise self._child.died() from error
        finally:
            connection.close()


_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of tokens


class Turn(NamedTuple):
    """One role's message, in pieces: each is tokenized by itself, so that their counts add up."""

    role: str
    texts: Sequence[str]


class Fence:
    """Prompts in which a document stays text: nothing in it opens a turn, ends one, or becomes a special token.

    llama.cpp reads `<|im_end|>` and its like as tokens wherever they are in a rendered prompt. So the template is
    rendered around marks, and the texts that the marks stand for are tokenized apart from it, as plain text.
    arguments: of the template.
    """

    def __init__(self, model: LlamaClient, **arguments: object) -> None:
        self._model, self._arguments = model, arguments

    def ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of a prompt, ready for an answer.

        Through the chat template, or the texts one after the other where the model takes no turns.
        """
        if not self._model.takes_turns:
            return self._model.opened([i for turn in turns for text in turn.texts for i in self.tokens(text)])
        ids: list[int] = []
        for written, place in self._rendered([turn.role for turn in turns]):
            ids += self._model.tokenize(written, special=True)
            if place is not None:
                ids += [i for text in turns[place].texts for i in self.tokens(text)]
        return self._model.opened(ids)

    def tokens(self, text: str) -> list[int]:
        """Ids of one piece as it is in a prompt."""
        if self._signs:
            text = self._signs.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return self._model.tokenize(text)

    def _rendered(self, roles: Sequence[str]) -> list[tuple[str, int | None]]:
        """Return (what the template writes, which turn comes after it), in order."""
        mark = f"q{secrets.token_hex(8)}q"
        messages = [{"role": role, "content": f"{mark}{i}{mark}"} for i, role in enumerate(roles)]
        prompt = self._model.render(messages, arguments=self._arguments)
        *pairs, last = re.split(rf"{mark}(\d+){mark}", prompt)
        return [(pairs[i], int(pairs[i + 1])) for i in range(0, len(pairs), 2)] + [(last, None)]

    @cached_property
    def _signs(self) -> re.Pattern[str] | None:
        """What a model would take for the template's own even in plain text.

        Tokens that llama.cpp finds in every text, and what the template writes around turns in plain letters, such as
        `[/INST]`.
        """
        metadata = self._model.metadata
        tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
        pairs = zip(tokens, types, strict=False) if isinstance(tokens, list) and isinstance(types, list) else ()
        kinds = {token: kind for token, kind in pairs if kind in (_CONTROL, _USER_DEFINED)}
        signs = {token for token, kind in kinds.items() if kind == _USER_DEFINED and len(token) > 2 and token.strip()}
        if self._model.takes_turns:
            control = "|".join(re.escape(token) for token, kind in kinds.items() if kind == _CONTROL) or r"(?!)"
            for written, _ in self._rendered(["user", "assistant", "user"]):
                for line in re.split(rf"{control}|\n", written):
                    signs |= {sign for sign in (line.strip(), *line.split()) if _is_sign(sign, line)}
        longest_first = sorted(signs, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if signs else None


def _is_sign(text: str, line: str) -> bool:
    """Return whether a line is a sign. A bare word, such as a role's name, is none: it is in every document."""
    return len(text) > 2 and not text.isalnum() and (text == line.strip() or text[0] in "[<")
