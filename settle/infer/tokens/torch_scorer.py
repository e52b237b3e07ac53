"""The probabilities of given tokens in settle's own model, in a child process: of a folder in Hugging Face's layout, or
of a GGUF file where llama.cpp's package of the extra `shrink` is not installed."""

import math
from pathlib import Path

from settle.base.errors import FormatError, ResourceError, UsageError
from settle.base.files import read_json
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats.gguf import read_gguf
from settle.formats.safetensors import read_safetensors
from settle.infer.scorer import Scorer, ScorerChild
from settle.library.facts import longest_context
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
    """The tokenizer of a model. Raises FormatError for one that is not supported."""
    if source.kind == "gguf":
        return PretrainedTokenizer(read_gguf(source.path).metadata)
    return PretrainedTokenizer.from_folder(source.path)
