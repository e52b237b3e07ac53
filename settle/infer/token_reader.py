"""A model that says of every token of a text how likely it is, and continues the text from any of them."""

import importlib.util
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from settle.base.chat_template import ChatTemplate
from settle.base.errors import FormatError, ResourceError, UsageError
from settle.base.files import read_json
from settle.base.tokenizer import Tokenizer
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.data.tokenizer.vocabulary import tokenizer_difference
from settle.formats.gguf import embeds, read_gguf
from settle.formats.safetensors import read_safetensors
from settle.infer.child_process import Json
from settle.infer.next_token import GREEDY, LIKELIEST, Distribution, Positions, Sampler
from settle.infer.scorer import PACKAGE, Overrides, Scorer, ScorerChild
from settle.library.facts import adapter_template, longest_context
from settle.library.reference import ModelRef
from settle.machine import memory, num_threads
from settle.model.source import Source


class TokenText(NamedTuple):
    """A token as people read it.

    text: what it stands for; the name of a special one; `<0xE2><0x82>` where it is a piece of a character. whole: the
    characters that such a piece belongs to with its neighbours, "" for other tokens.
    """

    id: int
    text: str
    is_special: bool = False
    whole: str = ""

    @property
    def shown(self) -> str:
        """In quotes, so that spaces can be seen; a special token without any."""
        return self.text if self.is_special else f'"{self.text}"'

    def to_json(self) -> Json:
        return {"id": self.id, "text": self.text, "special": self.is_special, "whole": self.whole}


def token_text(tokenizer: Tokenizer, token: int) -> TokenText:
    """Return one token alone; a vocabulary may be padded with ids that have no token."""
    if token >= tokenizer.vocab_size:
        return TokenText(token, f"[{token}]", True)
    raw = tokenizer.token_bytes[token]
    if not raw:
        return TokenText(token, tokenizer.tokens[token], True)
    try:
        return TokenText(token, raw.decode())
    except UnicodeDecodeError:
        return TokenText(token, "".join(f"<0x{byte:02X}>" for byte in raw))


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[TokenText]:
    """Return the tokens of a text in order; pieces of a character know it."""
    texts = [token_text(tokenizer, token) for token in ids]
    for first, last in _pieces(tokenizer, ids):
        raw = b"".join(tokenizer.token_bytes[token] for token in ids[first:last])
        whole = raw.decode("utf-8", "replace")
        texts[first:last] = [text._replace(whole=whole) for text in texts[first:last]]
    return texts


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield runs of tokens that are no whole characters alone, each as (first, behind the last).

    They are as short as gives whole characters together.
    """
    raw, first = b"", 0
    for at, token in enumerate(ids):
        piece = tokenizer.token_bytes[token] if token < tokenizer.vocab_size else b""
        if not raw and _is_text(piece):
            continue
        first = at if not raw else first
        raw += piece
        if _is_text(raw) or not piece:
            yield first, at + bool(piece)
            raw = b""
    if raw:
        yield first, len(ids)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


SHOWN = 20  # likeliest tokens that people see


@dataclass(frozen=True)
class TextReading:
    """A text as a model read it.

    model: its name. engine: what computed it. ids (N,): of the text as the model reads it. positions: what may follow
    after each. skipped: tokens before these that did not fit into the context.
    """

    model: str
    engine: str
    tokenizer: Tokenizer
    ids: list[int]
    positions: Positions
    skipped: int = 0

    @cached_property
    def texts(self) -> list[TokenText]:
        return token_texts(self.tokenizer, self.ids)

    def logprob(self, index: int) -> float | None:
        """Natural, of token `index`; None where nothing stands before it."""
        return float(self.positions.logprobs[index - 1]) if index else None

    def before(self, index: int) -> Distribution | None:
        """Return what could have been at token `index`, or comes after the text for N; None where nothing precedes."""
        return self.positions.at(index - 1) if index else None

    def alternatives(self, distribution: Distribution, sampler: Sampler | None = None, top: int = SHOWN) -> list[Json]:
        """Return the `top` likeliest tokens.

        Each is {"rank", "id", "text", "special", "logprob", "probability"}, and has how often it is "drawn" where a
        sampler is given.
        """
        drawn = distribution.drawn(sampler) if sampler else None
        pairs = enumerate(zip(distribution.ids[:top].tolist(), distribution.logprobs.tolist(), strict=False))
        return [
            {"rank": at + 1, **token_text(self.tokenizer, token).to_json(), "logprob": logprob}
            | {"probability": math.exp(logprob)}
            | ({"drawn": float(drawn[at])} if drawn is not None else {})
            for at, (token, logprob) in pairs
        ]

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the tokens that are predicted; None where they stand for no text."""
        num_bytes = sum(int(self.tokenizer.byte_length[token]) for token in self.ids[1:])
        total = float(self.positions.logprobs[: len(self.ids) - 1].sum())
        return -total / math.log(2) / num_bytes if num_bytes else None

    def to_json(self, sampler: Sampler | None = None, top: int = SHOWN) -> Json:
        return {
            "model": self.model,
            "engine": self.engine,
            "skipped": self.skipped,
            "bits_per_byte": self.bits_per_byte,
            "tokens": [
                text.to_json() | self.figures_json(index) | self.place_json(index, sampler, top)
                for index, text in enumerate(self.texts)
            ],
            "next": self.place_json(len(self.ids), sampler, top),
        }

    def figures_json(self, index: int) -> Json:
        """Log-probability, probability and rank of a token of the text, and the entropy in its place, in nats."""
        logprob, distribution = self.logprob(index), self.before(index)
        return {
            "logprob": logprob,
            "probability": None if logprob is None else math.exp(logprob),
            "rank": int(self.positions.ranks[index - 1]) if index else None,
            "entropy": None if distribution is None else distribution.entropy,
        }

    def place_json(self, index: int, sampler: Sampler | None = None, top: int = SHOWN) -> Json:
        """Return entropy in nats, the `top` likeliest tokens, and all others, the likeliest first.

        The others are pairs of (how many, log of their mean probability).
        """
        distribution = self.before(index)
        if distribution is None:
            return {"entropy": None, "top": [], "tail": []}
        known = [[1, logprob] for logprob in distribution.logprobs[top:].tolist()]
        bins = zip(distribution.counts.tolist(), distribution.means.tolist(), strict=True)
        likeliest = self.alternatives(distribution, sampler, top)
        return {"entropy": distribution.entropy, "top": likeliest, "tail": [*known, *map(list, bins)]}


@dataclass(frozen=True)
class ReadingPair:
    """A text in two models. difference: in which their tokenizers differ, "" where both read the same tokens."""

    one: TextReading
    other: TextReading
    difference: str

    @classmethod
    def of(cls, one: TextReading, other: TextReading) -> "ReadingPair":
        return cls(one, other, tokenizer_difference(one.tokenizer, other.tokenizer))

    @property
    def gains(self) -> Sequence[float | None]:
        """Log-probability differences of the other model, nats a token; none where the tokens are not the same."""
        if self.difference:
            return []
        pairs = [(self.one.logprob(at), self.other.logprob(at)) for at in range(len(self.one.ids))]
        return [None if a is None or b is None else b - a for a, b in pairs]

    def to_json(self) -> Json:
        return self.other.to_json() | {"difference": self.difference, "gains": list(self.gains)}


LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")  # as config.json spells it
NUMBER_BYTES = 4


class TorchScorer(Scorer):
    """One model loaded by torch in a child of its own. context: tokens of the longest window.

    Raises FormatError for files that are not sound, UsageError for a context that the model was not made for,
    ResourceError when the weights do not fit into memory, EngineError when they cannot be loaded.
    """

    def __init__(
        self, source: Source, num_vocab: int, context: int, threads: int | None = None, adapter: Path | None = None
    ) -> None:
        self.path, self.num_vocab, self.context = source.path, num_vocab, context
        longest = context_of(source)
        if context > longest:
            raise UsageError(
                f"{source.name} was made for {longest:,} tokens, and a window has {context:,}",
                f"give a context of at most {longest:,}",
            )
        if source.kind == "safetensors":
            tensors, free = read_safetensors(source.path).tensors, memory().available
            needed = NUMBER_BYTES * sum(math.prod(tensor.shape) for tensor in tensors.values())
            if needed > free:
                raise ResourceError(
                    f"{source.name} takes {needed / 1e9:.1f} GB in fp32, and {free / 1e9:.1f} GB are free",
                    f"`settle pull {source.path}`, and then use its name: llama.cpp needs less",
                )
        settings = {
            "path": str(source.path.resolve()),
            "threads": num_threads(threads),
            "adapter": str(adapter.resolve()) if adapter else None,
        }
        self._child = ScorerChild("torch_child.py", settings, source.name)


def context_of(source: Source) -> int:
    """Tokens that a model was trained for. Raises FormatError when its files do not say."""
    if source.kind == "gguf":
        return longest_context(source.path.name, read_gguf(source.path).metadata)
    config = read_json(source.path / "config.json")
    places = [config, config.get("text_config")] if isinstance(config, dict) else []
    lengths = [place[key] for place in places if isinstance(place, dict) for key in LENGTHS if key in place]
    longest = next((length for length in lengths if type(length) is int and length > 0), None)
    if longest is None:
        raise FormatError(f"{source.name} does not say how long its context is", "get its whole config.json")
    return longest


def tokenizer_of(source: Source) -> PretrainedTokenizer:
    """Return the tokenizer of a model. Raises FormatError for one that is not supported."""
    if source.kind == "gguf":
        return PretrainedTokenizer(read_gguf(source.path).metadata)
    return PretrainedTokenizer.from_folder(source.path)


CONTEXT = 2048  # tokens of a text, where nothing else is asked for: more take long to read on a processor


class TokenReader:
    """One model, loaded in a child process of its own. Threads may share it; use it as a context manager.

    A GGUF file is read by llama.cpp, a folder in Hugging Face's layout, and a file where llama.cpp's package is not
    installed, by settle's own model. context: tokens of a text with what is written behind it, never more than the
    model was trained for. Raises UsageError for a model that writes no text, and what `Scorer` and `TorchScorer` raise.
    """

    def __init__(self, model: ModelRef, context: int | None = None, threads: int | None = None) -> None:
        self.name = model.name
        source = model.base.source if model.adapter and model.base else model.source
        if source.kind == "gguf" and embeds(read_gguf(source.path).metadata):
            raise UsageError(f"{model.name} turns texts into vectors and writes none", "choose a model that writes")
        self.tokenizer = tokenizer_of(source)
        self.longest = context_of(source)
        self.context = min(context or CONTEXT, self.longest)
        self.chat_template = (adapter_template(model.adapter) if model.adapter else "") or self.tokenizer.chat_template
        self._scorer: Scorer
        if source.kind == "gguf" and importlib.util.find_spec(PACKAGE) is not None:
            self.engine = "llama.cpp"  # what computes
            self._scorer = Scorer(source.path, self.context, threads, Overrides(model.adapter))
        else:
            self.engine = "settle"
            self._scorer = TorchScorer(source, self.tokenizer.vocab_size, self.context, threads, model.adapter)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._scorer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return tuple(dict.fromkeys((self.tokenizer.eos_id, self.tokenizer.turn_end_id)))

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Return the ids of a text to complete, behind the token that opens a text where the model expects one.

        It is also there where there is no text. specials: whether `<|end|>` and its like in it become tokens.
        """
        ids = [int(token) for token in self.tokenizer.encode(text, specials)]
        return self.opened(ids) if self.tokenizer.add_bos or not ids else ids

    def opened(self, ids: Sequence[int]) -> list[int]:
        """Ids behind the token that opens a text, or the one that ends one where the model has no other."""
        bos = self.tokenizer.bos_id
        opening = self.tokenizer.eos_id if bos is None else bos
        return list(ids) if list(ids[:1]) == [opening] else [opening, *ids]

    def question(self, text: str, template: str | None = None) -> list[int]:
        """Return the ids of a question in the model's chat template, or in another one, ready for an answer.

        Raises UsageError where the model has none, TemplateFailure.
        """
        template = self.chat_template if template is None else template
        if not template:
            raise UsageError(f"{self.name} has no chat template", "leave --template out: it completes text")
        tokens, bos, eos = self.tokenizer.tokens, self.tokenizer.bos_id, self.tokenizer.eos_id
        rendering = ChatTemplate(template, "" if bos is None else tokens[bos], tokens[eos])
        rendered = rendering.render([{"role": "user", "content": text}], add_generation_prompt=True)
        ids = [int(token) for token in self.tokenizer.encode(rendered, True)]
        return self.opened(ids) if self.tokenizer.add_bos else ids

    def read(self, ids: Sequence[int], likeliest: int = LIKELIEST) -> TextReading:
        """Read every token of a text with its probability; of a text that is longer than the context, its last tokens.

        Raises EngineError.
        """
        kept = self._fitting(ids)
        with self._lock:
            positions = self._scorer.positions(kept, likeliest)
        return TextReading(self.name, self.engine, self.tokenizer, kept, positions, len(ids) - len(kept))

    def positions(self, ids: Sequence[int], first: int) -> Positions:
        """Describe what may be at place `first` of a text that fits into the context, at each later one, and behind it.

        Raises UsageError for one that does not fit.
        """
        with self._lock:
            return self._scorer.positions(ids, first=first)

    def write(self, ids: Sequence[int], most: int, sampler: Sampler = GREEDY, seed: int = 0) -> list[int]:
        """Write the ids that follow a text, as far as the context goes; the last one is a stop where one was drawn."""
        kept = self._fitting(ids)
        with self._lock:
            return self._scorer.write(kept, most, sampler, seed, self.stops)

    def text(self, ids: Sequence[int]) -> str:
        """Return what ids stand for, control tokens left out; bytes that are no whole character become U+FFFD."""
        return b"".join(self.tokenizer.token_bytes[token] for token in ids).decode("utf-8", "replace")

    def shown_text(self, ids: Sequence[int]) -> str:
        """Return what ids stand for, with control tokens by their names."""
        texts = token_texts(self.tokenizer, ids)
        return "".join(text.text if text.is_special else self.text([text.id]) for text in texts)

    def _fitting(self, ids: Sequence[int]) -> list[int]:
        """Return the last ids that fit, behind the token that opens a text where the model expects one."""
        if len(ids) <= self.context:
            return list(ids)
        if self.tokenizer.add_bos and self.context > 1:
            return self.opened(ids[len(ids) - self.context + 1 :])
        return list(ids[-self.context :])
