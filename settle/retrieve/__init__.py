"""Documents: found, cited, and said to be silent where they are.

folders → reading (in a child) → chunkers → embedders → stores and the catalogue → search → evidence → answer

    from settle.retrieve import Collection
    with Collection("docs") as docs:
        print(docs.ask("How do I rotate the key?"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from settle.retrieve.index.collection import Collection as Collection

__all__ = ["Collection"]


def __getattr__(name: str) -> Any:
    # loaded when it is asked for: what else lies in this room is imported without it
    if name in __all__:
        from settle.retrieve.index.collection import Collection

        return Collection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
