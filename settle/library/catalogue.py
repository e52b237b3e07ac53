"""The short list of models that `settle pull` gets by a name of its own: catalogue.toml."""

import datetime
import functools
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from settle.base.run import NAME


class CatalogueEntry(BaseModel):
    """wheels: packages whose files make up the model, in order. sha256: of the GGUF file, or of a folder's files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wheels: tuple[str, ...]
    sha256: str
    license: str
    about: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    models: dict[str, CatalogueEntry]


@functools.cache
def catalogue() -> dict[str, CatalogueEntry]:
    """The models by name."""
    with Path(__file__).with_name("catalogue.toml").open("rb") as file:
        models = _File.model_validate(tomllib.load(file)).models
    assert all(NAME.fullmatch(name) for name in models)
    return models
