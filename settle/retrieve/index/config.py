"""The embedder, chunker and store of a collection, chosen at the first indexing and stored with it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from settle.base.registry import Part
from settle.retrieve.index.catalogue.database import StoredSettings
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.embedders import Embedder
from settle.retrieve.index.stores import Store

_KEY = "made"

PartRecord = dict[str, object]
"""The name of a part under "name", and its settings, as JSON holds them."""


class IndexParts(NamedTuple):
    """The parts that a collection is made with."""

    embedder: Embedder
    store: Store
    chunker: Chunker

    def records(self) -> dict[str, PartRecord]:
        """Return the stored record of each part."""
        return {family: part_record(part) for family, part in self._asdict().items()}


@dataclass(frozen=True)
class IndexConfig:
    """How a collection is made.

    identity: of the embedder, as only its vectors can be compared. width: of the vectors. table: the name of the
    collection in its store, which no other collection uses.
    """

    embedder: PartRecord
    store: PartRecord
    chunker: PartRecord
    identity: str
    width: int
    table: str

    @classmethod
    def stored(cls, settings: StoredSettings) -> "IndexConfig | None":
        """Return the stored configuration of a collection, or None before anything was indexed."""
        record = settings.get(_KEY, dict)
        return cls(**record) if record else None

    def store_in(self, settings: StoredSettings) -> None:
        settings.set(_KEY, asdict(self))

    def record(self, family: str) -> PartRecord:
        """Return the record of the "embedder", "store" or "chunker"."""
        records = {"embedder": self.embedder, "store": self.store, "chunker": self.chunker}
        return records[family]

    def make_embedder(self) -> Embedder:
        return Embedder.make(*_split(self.embedder))

    def make_store(self) -> Store:
        return Store.make(*_split(self.store))

    def make_chunker(self) -> Chunker:
        return Chunker.make(*_split(self.chunker))

    def has(self, family: str, settings: Mapping[str, object]) -> bool:
        """Return whether a part is the one that these settings (with a "name", or without) ask for."""
        record = self.record(family)
        return all(str(record.get(key)) == str(value) for key, value in settings.items())

    def differing(self, wanted: dict[str, PartRecord]) -> list[str]:
        """Return the families of which another part, or other settings, are wanted."""
        return [family for family, record in wanted.items() if self.record(family) != record]


def part_record(part: Part) -> PartRecord:
    return {"name": part.part_name(), **part.model_dump(mode="json")}


def shown(record: PartRecord) -> str:
    """Return a part with its settings, for a message."""
    settings = ", ".join(f"{k} {v}" for k, v in record.items() if k != "name" and v not in ("", None))
    return f"{record['name']} ({settings})" if settings else str(record["name"])


def _split(record: PartRecord) -> tuple[str, PartRecord]:
    return str(record["name"]), {key: value for key, value in record.items() if key != "name"}
