"""How a model's maker recommends to draw its answers: in its GGUF file, in generation_config.json, in the catalogue."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from settle.library.catalogue import catalogue_file
from settle.model.source import Source

Metadata = Mapping[str, object]
# our name (and llama.cpp's) → the key of a GGUF file, the name in generation_config.json, the largest value
FIELDS = {
    "temperature": ("general.sampling.temp", "temperature", 5.0),
    "top_p": ("general.sampling.top_p", "top_p", 1.0),
    "top_k": ("general.sampling.top_k", "top_k", 1 << 20),
    "min_p": ("general.sampling.min_p", "min_p", 1.0),
    "repeat_penalty": ("general.sampling.penalty_repeat", "repetition_penalty", 2.0),
}
CHAT = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "min_p": 0.05}  # where nothing is recommended
TEXT = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}


class Recommended(NamedTuple):
    """settings: under llama.cpp's names. source: who recommends them."""

    settings: Mapping[str, float]
    source: str


def recommended_sampling(metadata: Metadata, takes_turns: bool) -> Recommended:
    """How answers of the model of a GGUF file are drawn, unless something else is asked for. takes_turns: it chats."""
    in_file = sampling_in_file(metadata)
    if in_file:
        return Recommended(in_file, "its file")
    if not takes_turns:
        return Recommended(TEXT, "settle's default")
    names = [_plain(str(metadata.get(f"general.{key}") or "")) for key in ("name", "basename")]
    for row in catalogue_file().sampling:
        if any(name.startswith(_plain(model)) for name in names for model in row.models):
            return Recommended(row.settings, row.source)
    return Recommended(CHAT, "settle's default")


def sampling_in_file(metadata: Metadata) -> dict[str, float]:
    """Return what a GGUF file itself recommends."""
    return _valid({name: metadata.get(key) for name, (key, _, _) in FIELDS.items()})


def sampling_keys(source: Source, metadata: Metadata) -> dict[str, object]:
    """Return the GGUF keys that recommend a model's sampling. metadata: of its file."""
    if source.kind == "gguf":
        found = recommended_sampling(metadata, True)
        settings = {} if found.settings is CHAT else dict(found.settings)
    else:
        settings = _in_folder(source)
    return {FIELDS[name][0]: int(value) if name == "top_k" else float(value) for name, value in settings.items()}


def _in_folder(source: Source) -> dict[str, float]:
    """Return what generation_config.json recommends; {} where it samples nothing, is missing or is damaged."""
    path = source.path / "generation_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or config.get("do_sample") is False:
        return {}
    return _valid({name: config.get(theirs) for name, (_, theirs, _) in FIELDS.items()})


def _valid(values: Mapping[str, object]) -> dict[str, float]:
    """Return the values that a sampler takes: a file may say anything."""
    return {
        name: int(value) if name == "top_k" else round(float(value), 4)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= FIELDS[name][2]
    }


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
