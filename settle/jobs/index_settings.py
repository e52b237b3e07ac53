"""What `settle index` can be told; light to import, the job itself is in `index.py`."""

from pydantic import Field

from settle.base.choice import Choice, choice
from settle.machine.threads import ThreadSettings


class IndexSettings(ThreadSettings):
    """Which folders become which collection, with which parts, and what is done afterwards."""

    paths: list[str] = Field([], description="folders and files, or the name of a collection")
    name: str | None = Field(None, description="name of the collection; made from the folder's name if not given")
    watch: bool = Field(False, description="stay, and index changes as soon as they happen; Ctrl-C ends it")
    anew: bool = Field(
        False, description="rebuild from scratch; the old index keeps answering until the new one is ready"
    )
    status: bool = Field(
        False, description="index nothing; list what could not be read, and how many files changed since"
    )
    without: list[str] = Field([], description="stop following this folder or file")
    delete: bool = Field(False, description="delete the collection; the documents stay where they are")
    check: bool = Field(
        False, description="evaluate retrieval and refusals with questions generated from the documents"
    )
    questions: int = Field(300, gt=0, description="number of questions that --check asks")
    model: str | None = Field(
        None, description="writes some of --check's questions and answers some, to check citations; none if not given"
    )
    embedder: Choice = choice(
        "retrieve/index/embedders", description="what turns passages into vectors; minilm for a new collection"
    )
    chunker: Choice = choice(
        "retrieve/index/chunkers", description="what cuts documents into passages; structure for a new collection"
    )
    store: Choice = choice("retrieve/index/stores", description="what stores vectors; lancedb for a new collection")
