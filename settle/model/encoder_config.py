"""What the config.json of an encoder says: its labels, and what it is for. Reading it loads no torch."""

from collections.abc import Mapping
from typing import Any, Literal

Use = Literal["embed", "rerank", "ground"]


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the labels of a model with a head."""
    named = config.get("id2label") or {}
    number = len(named) or int(config.get("num_labels", 2))
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(number))


def has_token_labels(config: Mapping[str, Any]) -> bool:
    """Return whether each token has labels, and not the whole text."""
    return _class(config).endswith("ForTokenClassification")


def use_of(config: Mapping[str, Any]) -> Use:
    """Return what an encoder is for: vectors, the order of passages, or whether a passage supports a claim."""
    if has_token_labels(config):
        return "ground"
    if _class(config).endswith("ForSequenceClassification"):
        return "ground" if len(labels_of(config)) > 1 else "rerank"
    return "embed"


def _class(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])
