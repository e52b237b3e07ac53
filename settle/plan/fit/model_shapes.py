"""The shape of a model by any name: a file, a folder, a model of the store or a run, or one of the catalogue."""

import math
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import FormatError, UsageError
from settle.base.files import read_json
from settle.formats.gguf import read_gguf
from settle.formats.safetensors import read_safetensors
from settle.library.catalogue import Quality, catalogue_file, find_known, known_model
from settle.library.facts import read_facts
from settle.library.model_shape import ModelShape, shape_from_config, shape_from_gguf
from settle.library.resolve import is_path, resolve
from settle.plan.fit.weight_types import Matrices, matrices_of


@dataclass(frozen=True)
class NamedShape:
    """A model by its name and its shape."""

    name: str
    shape: ModelShape
    source: str  # of the numbers
    type: str | None = None  # of a file that is here, or the only one it is published in; None where it may be chosen
    bytes: int | None = None  # of a file that is here
    matrices: Matrices | None = None  # as that file stores them
    published: tuple[Quality, ...] = ()  # what others measured of its quality


def named_shape(name: str) -> NamedShape:
    """Find a model by any name.

    Raises UsageError for an unknown name, FormatError for a file that does not describe a decoder.
    """
    if not is_path(name) and not Path(name).exists() and (found := find_known(name)):
        source = f"catalogue of {catalogue_file().known_date}"
        return NamedShape(found.name, found.shape, source, found.only_type or None, published=found.quality)
    try:
        path = resolve(name).weights
    except UsageError:
        if is_path(name):
            raise
        known_model(name)  # says the nearest names
        raise
    return shape_of_file(path, name)


def shape_of_file(path: Path, name: str) -> NamedShape:
    """Return the shape of a GGUF file, or of a folder in Hugging Face's layout. Raises FormatError."""
    if path.is_dir():
        tensors = read_safetensors(path).tensors
        config = read_json(path / "config.json")
        if not isinstance(config, dict):
            raise FormatError(f"{path.name}: config.json holds no table", "get the model again")
        shape = shape_from_config(config, sum(math.prod(tensor.shape) for tensor in tensors.values()))
        return NamedShape(name, shape, "its config.json")
    weights = read_gguf(path)
    sizes = {key: math.prod(tensor.shape) for key, tensor in weights.tensors.items()}
    facts = read_facts(path)
    shape = shape_from_gguf(weights.metadata, sizes)
    return NamedShape(name, shape, "its file", facts.quantization.lower(), facts.bytes, matrices_of(weights))


def every_known_shape() -> list[NamedShape]:
    """Every model of the catalogue that writes text, largest first."""
    file = catalogue_file()
    source = f"catalogue of {file.known_date}"
    shapes = [NamedShape(model.name, model.shape, source, model.only_type or None) for model in file.known]
    return sorted(shapes, key=lambda named: -named.shape.parameters)
