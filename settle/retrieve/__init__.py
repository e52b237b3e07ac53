"""Documents: found, cited, and refused where they hold no answer.

A sub-room imports only those before it: index/ (documents → passages, vectors, words) → search (a question → ranked
passages) → answer/ (passages → an answer with citations, or a refusal) → check/ (how well all of that works).

    from settle.retrieve import Collection
    with Collection("docs") as docs:
        print(docs.ask("How do I rotate the key?"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from settle.retrieve.answer.ask import AskableCollection as Collection

__all__ = ["Collection"]


def __getattr__(name: str) -> object:
    # loaded on first use: the sub-rooms are imported without it
    if name in __all__:
        from settle.retrieve.answer.ask import AskableCollection

        return AskableCollection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
