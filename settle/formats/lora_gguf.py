"""An adapter as llama.cpp loads it over the GGUF of its base (`--lora`).

Layout, as llama.cpp's convert_lora_to_gguf.py writes and src/llama-adapter.cpp reads: general.type "adapter",
adapter.type "lora", adapter.lora.alpha, and for each adapted tensor NAME the two NAME.lora_a (r, I) and NAME.lora_b
(O, r), of stacked experts (experts, r, I) and (experts, O, r). llama.cpp adds alpha / r · B A.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from settle.base.errors import FormatError
from settle.base.python_command import shell_line
from settle.formats import AdapterContents, AdapterWeights, Card, Format, LoraPairs, ModelLayout, Weights
from settle.formats.gguf import read_gguf, write_tensors
from settle.formats.gguf.layout import Entry, Pieces
from settle.formats.gguf.metadata import number

DOWN, UP = ".lora_a", ".lora_b"
BASE_SHA256 = "settle.base_sha256"


class LoraGguf(Format):
    """One file with the adapter alone; llama.cpp loads it together with the GGUF of its base."""

    suffix: ClassVar[str] = ".gguf"
    holds: ClassVar[Literal["model", "adapter"]] = "adapter"
    dtype: Literal["f32", "f16"] = Field("f32", description="type of the tensors")

    def read(self, path: Path) -> Weights:
        return read_lora(path)

    def write_adapter(self, path: Path, adapter: AdapterContents) -> Path:
        return export_lora(adapter.architecture, adapter.adapter, path, self.dtype, adapter.card)

    def default_path(self, name: str) -> Path:
        return Path(f"{name}-lora.gguf")

    def next_line(self, path: Path, name: str) -> str:
        return shell_line("llama-cli", "--model", "BASE.gguf", "--lora", str(path))


def export_lora(
    part: ModelLayout,
    adapter: AdapterWeights,
    path: Path,
    dtype: str = "f32",
    metadata: Card | None = None,
) -> Path:
    """Write an adapter as GGUF, beside and renamed. Returns the path.

    part: the architecture of its base; metadata: "name" and "description" go to general.*; "template": the chat
    template that it was trained with, where its base has another or none, or takes no turns. Raises FormatError for
    DoRA, for a module that llama.cpp cannot adapt and for values that the type cannot hold, ResourceError on a full
    disk.
    """
    if adapter.lora is None:
        raise FormatError(f"llama.cpp has no {adapter.name} over a base", "merge it: `settle export NAME --to gguf`")
    tensors = _tensors(part, adapter.parameters(part), adapter.lora, dtype)
    card = metadata or {}
    own: dict[str, object] = {"general.architecture": part.gguf_family, "general.type": "adapter"}
    own |= {f"general.{key}": str(card[key]) for key in ("name", "description") if card.get(key)}
    if card.get("template"):
        own["tokenizer.chat_template"] = str(card["template"])
    if adapter.base:
        own |= {"general.base_model.count": 1, "general.base_model.0.name": adapter.base}
    if adapter.base_sha256:
        own[BASE_SHA256] = adapter.base_sha256
    own |= {"adapter.type": "lora", "adapter.lora.alpha": np.float32(adapter.lora.alpha)}
    pieces = [
        Pieces(Entry(name, tensor.shape, dtype.upper(), tensor.nbytes), [partial(np.copy, tensor)])
        for name, tensor in tensors.items()
    ]
    return write_tensors(Path(path), own, pieces)


def read_lora(path: Path) -> Weights:
    """Read and check an adapter's file. Raises FormatError for a file that is no LoRA or whose pairs do not fit."""
    weights = read_gguf(path)
    file = Path(path).name
    if weights.metadata.get("general.type") != "adapter" or weights.metadata.get("adapter.type") != "lora":
        raise FormatError(f"{file} is no LoRA adapter", "give the file that was exported with --to lora-gguf")
    if not isinstance(weights.metadata.get("adapter.lora.alpha"), float):
        raise FormatError(f"{file} does not say its adapter.lora.alpha", "export it again")
    for name, tensor in weights.tensors.items():
        half, other_half = (DOWN, UP) if name.endswith(DOWN) else (UP, DOWN)
        other = weights.tensors.get(name.removesuffix(half) + other_half)
        if other is None or len(tensor.shape) not in (2, 3) or len(other.shape) != len(tensor.shape):
            raise FormatError(f"{file}: {name} is not one of a pair of matrices", "export it again")
        if half == DOWN and tensor.shape[-2] != other.shape[-1]:
            raise FormatError(f"{file}: {name} and its other half have no rank in common", "export it again")
    return weights


def require_fit(lora: Weights, base: Weights, names: tuple[str, str]) -> None:
    """Raise FormatError when an adapter's file does not fit over a base's file. names: of the two, for the error."""
    theirs, ours = lora.metadata["general.architecture"], base.metadata["general.architecture"]
    if theirs != ours:
        raise FormatError(f"{names[0]} is an adapter of a {theirs} model, and {names[1]} is {ours}", "use its own base")
    for name, down in lora.tensors.items():
        if not name.endswith(DOWN):
            continue
        target, up = name.removesuffix(DOWN), lora.tensors[name.removesuffix(DOWN) + UP]
        tensor, adapted = base.tensors.get(target), (*up.shape[:-1], down.shape[-1])
        if tensor is None or tensor.shape != adapted:
            has = "is not there" if tensor is None else f"has the shape {tensor.shape}"
            raise FormatError(
                f"{names[0]} adapts {target} of shape {adapted}, which {has} in {names[1]}",
                "use the base it was trained on",
            )


def read_pairs(path: Path, part: ModelLayout) -> LoraPairs:
    """Read the pairs of an adapter's file, which are for a model of this architecture.

    Raises FormatError for modules it does not have, for stacked experts, and for pairs of several ranks.
    """
    file = read_lora(path)
    parameters = {theirs: ours for ours, theirs in part.gguf_names().items()}
    modules = part.hf_modules()
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in (name.removesuffix(UP) for name in file.tensors if name.endswith(UP)):
        down, up = (file.tensors[name + half].load() for half in (DOWN, UP))
        if name not in parameters or down.ndim != 2:
            raise FormatError(
                f"{Path(path).name} adapts {name}, which is not supported here", "serve it with llama.cpp itself"
            )
        ours = parameters[name]
        pairs[modules[ours]] = pair_from_gguf(part, ours, down, up)
    ranks = {len(down) for down, _ in pairs.values()}
    if len(ranks) != 1:
        raise FormatError(f"{Path(path).name} has pairs of {len(ranks)} ranks", "llama.cpp may serve it")
    return LoraPairs(number(file.metadata, "adapter.lora.alpha"), pairs)


def pair_from_gguf(part: ModelLayout, name: str, down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a file's A (r, I) and B (O, r) of a parameter in the order of its inputs and outputs here."""
    # the inputs of an update are its rank
    rows = up if part.column_run(name) else part.from_gguf_tensor(name, up)
    return np.asarray(part.columns_from_gguf(name, down)), np.asarray(rows)


def _tensors(part: ModelLayout, parameters: Mapping[str, str], lora: LoraPairs, dtype: str) -> dict[str, np.ndarray]:
    """Map llama.cpp's names to arrays; B's rows are in the order of the rows of the weight they are added to.

    parameters: of the architecture, by module.
    """
    names, pieces = part.gguf_names(), defaultdict(list)
    code = np.float16 if dtype == "f16" else np.float32
    modules = {parameter: module for module, parameter in parameters.items()}
    for parameter in filter(modules.__contains__, names):  # in the order in which experts are stacked
        module = modules[parameter]
        down, up = lora.pairs[module]
        rows = up if part.column_run(parameter) else part.to_gguf(parameter, up)
        for suffix, values in ((DOWN, part.columns_to_gguf(parameter, down)), (UP, rows)):
            if not np.isfinite(values).all():
                raise FormatError(f"the adapter of {module} holds NaN or infinity", "the run is broken; resume it")
            if np.abs(values).max(initial=0.0) > np.finfo(code).max:
                raise FormatError(f"the adapter of {module} holds values that f16 cannot hold", "use --dtype f32")
            pieces[names[parameter] + suffix].append(np.ascontiguousarray(values, code))
    stacked = Counter(names.values())
    return {name: _joined(name, arrays, stacked[name.rpartition(".")[0]]) for name, arrays in pieces.items()}


def _joined(name: str, pieces: list[np.ndarray], number: int) -> np.ndarray:
    """Join the pieces of a tensor of the file; of stacked experts, all must have been adapted."""
    if len(pieces) != number:
        raise FormatError(
            f"the adapter is for {len(pieces)} of the {number} experts behind {name}, llama.cpp wants all or none",
            "merge it: `settle export NAME --to gguf`",
        )
    return np.stack(pieces) if number > 1 else pieces[0]
