"""What a name stands for: a model, an adapter, a draft or a collection, and where its files are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from settle.model.source import Source

RefKind = Literal["model", "adapter", "draft", "collection"]


class Proposal(NamedTuple):
    """How a draft proposes tokens best, as measured: see `settle.infer.child_process.Draft`.

    speed_up: how many times as fast its model was with it.
    """

    tokens: int
    sure: float
    speed_up: float


@dataclass(frozen=True)
class ModelRef:
    """What a name stands for.

    name: to show, and to build names from. source: the files. base: the model below an adapter, or the one that
    answers from a collection. proposal: of a draft. aliases: other names of the same thing.
    """

    name: str
    kind: RefKind
    source: Source
    base: "ModelRef | None" = None
    proposal: Proposal | None = None
    aliases: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """A GGUF file, or a folder in Hugging Face's layout; of a collection, its folder."""
        return self.source.path

    @property
    def id(self) -> str:
        """A name that nothing else on this machine has: an adapter with its base, a collection with its model."""
        mark = {"adapter": ":", "collection": "@"}.get(self.kind)
        if mark is None or self.base is None:
            return self.name
        return f"{self.base.name}:{self.name}" if mark == ":" else f"{self.name}@{self.base.id}"

    @property
    def weights(self) -> Path:
        """The whole model: of an adapter, its base."""
        return self.base.weights if self.base else self.path

    @property
    def adapter(self) -> Path | None:
        """The LoRA that is served over `weights`, or None."""
        if self.kind == "collection" and self.base:
            return self.base.adapter
        return self.path if self.kind == "adapter" else None

    def adapts(self, base: "ModelRef") -> bool:
        """Whether this is `base` with an adapter over it."""
        return self.adapter is not None and base.adapter is None and base.weights.resolve() == self.weights.resolve()
