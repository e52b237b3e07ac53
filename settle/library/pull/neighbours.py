"""Models that Ollama and LM Studio already have on this machine: linked in place, never copied.

Layouts: Ollama's `manifests/<host>/<namespace>/<name>/<tag>` names blobs by their sha256; LM Studio's
`models/<publisher>/<repository>/<file>.gguf`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import FormatError, UsageError
from settle.base.event_log import Events
from settle.base.files import parse_json
from settle.library.pull import Offer
from settle.library.store import model_name

MODEL_LAYER = "application/vnd.ollama.image.model"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Neighbour:
    """A model of another program. name: as that program shows it."""

    where: str
    name: str
    path: Path
    num_bytes: int
    sha256: str = ""


def neighbours() -> Iterator[Neighbour]:
    yield from ollama_models()
    yield from lmstudio_models()


def ollama_folder() -> Path:
    """$OLLAMA_MODELS, or where Ollama keeps its models without it."""
    return Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")


def lmstudio_folders() -> list[Path]:
    """Where LM Studio keeps its models, now and in versions before 0.3."""
    return [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]


def ollama_models() -> Iterator[Neighbour]:
    """Models of Ollama's store whose weights are present, `name:tag` as `ollama list` shows them."""
    manifests = ollama_folder() / "manifests"
    for file in sorted(manifests.glob("*/*/*/*")) if manifests.is_dir() else []:
        host, namespace, name, tag = file.relative_to(manifests).parts
        shown = f"{name}:{tag}"
        if host != "registry.ollama.ai":
            shown = f"{host}/{namespace}/{shown}"
        elif namespace != "library":
            shown = f"{namespace}/{shown}"
        digest = _weights(file)
        blob = ollama_folder() / "blobs" / digest.replace(":", "-") if digest else None
        if blob is not None and blob.is_file():
            yield Neighbour("ollama", shown, blob, blob.stat().st_size, blob.name.removeprefix("sha256-"))


def _weights(manifest: Path) -> str | None:
    """Return the digest of a manifest's weights; None when the file is not a manifest."""
    try:
        layers = parse_json(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == MODEL_LAYER]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return digests[0] if len(digests) == 1 and DIGEST.fullmatch(str(digests[0])) else None


def lmstudio_models() -> Iterator[Neighbour]:
    """Models of LM Studio's store, `publisher/repository/file`."""
    for folder in lmstudio_folders():
        for path in sorted(folder.glob("*/*/*.gguf")):
            if not path.name.startswith("mmproj"):  # the vision part of a model, not a model
                yield Neighbour("lmstudio", path.relative_to(folder).as_posix(), path, path.stat().st_size)


def ollama_offer(name: str) -> Offer | None:
    """Return the model that Ollama calls `name`; `latest` when it has no tag."""
    wanted = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    model = next((n for n in ollama_models() if n.name == wanted), None)
    if model is None:
        return None
    short = model.name.removesuffix(":latest").rpartition("/")[2]
    return _offer(model, model_name(short.replace(":", "-")))


def lmstudio_offer(name: str) -> Offer | None:
    """Return the model of LM Studio named by `publisher/repository`, by its file, or by both."""
    matches = []
    for model in lmstudio_models():
        publisher, repository, file = model.name.split("/")
        spellings = (model.name, f"{publisher}/{repository}", repository, file, file.removesuffix(".gguf"))
        matches += [model] if name in spellings else []
    if len(matches) > 1:
        names = ", ".join(n.name for n in matches)
        raise UsageError(f"{name} is several models in LM Studio", f"choose one: {names}")
    return _offer(matches[0], model_name(matches[0].path.stem)) if matches else None


def _offer(neighbour: Neighbour, name: str) -> Offer:
    def fetch(folder: Path, events: Events) -> Path:
        if re.search(r"-\d{5}-of-\d{5}\.gguf$", neighbour.path.name):
            raise FormatError(
                f"{neighbour.path.name} is one of several files of a model", "a model in one file is needed"
            )
        return neighbour.path

    return Offer(neighbour.where, neighbour.name, name, fetch, neighbour.sha256)
