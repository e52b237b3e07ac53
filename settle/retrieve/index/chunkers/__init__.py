"""Chunkers: one file for each way to cut a document into passages."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from settle.base.registry import Part
from settle.documents.blocks import Block, Chunk

Count = Callable[[Sequence[str]], list[int]]


class Chunker(Part):
    """The contract of a chunker."""

    def cut(self, blocks: Iterable[Block], count: Count, most: int) -> Iterator[Chunk]:
        """Yield passages in order, each of at most `most` tokens together with its headings.

        count: tokens of some texts, as the embedder counts them, without its special tokens.
        """
        raise NotImplementedError
