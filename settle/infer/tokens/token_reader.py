"""A model that says of every token of a text how likely it is, and continues the text from any of them."""

import importlib.util
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from settle.base.chat_template import ChatTemplate
from settle.base.errors import FormatError, ResourceError, UsageError
from settle.base.files import read_json
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats.gguf import embeds, read_gguf
from settle.formats.safetensors import read_safetensors
from settle.infer.scorer import PACKAGE, Overrides, Scorer, ScorerChild
from settle.infer.tokens.next_token import GREEDY, LIKELIEST, Positions, Sampler
from settle.infer.tokens.text_reading import TextReading, token_texts
from settle.library.facts import adapter_template, longest_context
from settle.library.reference import ModelRef
from settle.machine import memory, num_threads
from settle.model.source import Source

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
        self._child = ScorerChild("tokens/torch_child.py", settings, source.name)


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
        self._scorer = self._scorer_of(source, model, threads)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._scorer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()

    @property
    def engine(self) -> str:
        """What computes: "llama.cpp" or "settle"."""
        return "settle" if isinstance(self._scorer, TorchScorer) else "llama.cpp"

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

    def _scorer_of(self, source: Source, model: ModelRef, threads: int | None) -> Scorer:
        if source.kind == "gguf" and importlib.util.find_spec(PACKAGE) is not None:
            return Scorer(source.path, self.context, threads, Overrides(model.adapter))
        return TorchScorer(source, self.tokenizer.vocab_size, self.context, threads, model.adapter)
