"""How many tokens of context a GGUF file may have here: what its model knows, and what memory holds."""

from collections.abc import Mapping
from typing import Any

from settle.base.errors import FormatError, ResourceError
from settle.machine import memory

LONGEST_UNASKED = 1 << 17  # tokens: a longer context must be asked for, since a file may claim any


def longest_context(name: str, metadata: Mapping[str, Any]) -> int:
    """Tokens that the model was made for. Raises FormatError when the file does not say."""
    longest = _largest(metadata, "context_length")
    if longest < 1:
        raise FormatError(f"{name} does not say how long its context is", "it is not a whole model")
    return longest


def bytes_per_token(metadata: Mapping[str, Any]) -> int:
    """Of context: keys and values of every layer, two bytes each."""
    heads = _largest(metadata, "attention.head_count")
    width = _largest(metadata, "attention.key_length") or _largest(metadata, "embedding_length") // max(heads, 1)
    return 4 * _largest(metadata, "block_count") * (_largest(metadata, "attention.head_count_kv") or heads) * width


def fitting_context(name: str, metadata: Mapping[str, Any], asked: int | None, slots: int) -> int:
    """Tokens of context for each slot: never more than the model knows, nor than memory holds, whatever the file
    says. Raises ResourceError when what was asked for does not fit."""
    longest, per_token = longest_context(name, metadata), bytes_per_token(metadata) * slots
    fits = memory().available // 2 // max(per_token, 1)  # half is left for everything else
    if asked is not None and min(asked, longest) > fits:
        raise ResourceError(
            f"a context of {min(asked, longest):,} tokens takes {min(asked, longest) * per_token / 1e9:.1f} GB, "
            f"and {memory().available / 1e9:.1f} GB are free",
            f"ask for {fits:,} at most",
        )
    return max(1, min(asked or LONGEST_UNASKED, longest, fits))


def _largest(metadata: Mapping[str, Any], key: str) -> int:
    """The largest value where each layer has its own; 0 when it is not said."""
    value = metadata.get(f"{metadata['general.architecture']}.{key}", 0)
    values = value if isinstance(value, list) else [value]
    return max((v for v in values if type(v) is int), default=0)
