"""Passages of whole sentences that overlap."""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field

from settle.documents.blocks import Block, Chunk
from settle.retrieve.index.chunkers import Chunker, Count
from settle.retrieve.index.chunkers._fill_passages import LINE, SENTENCE, BlockPiece, Filler, cut_at


class Sentences(Chunker):
    """Each section's sentences, rows and lines of listings one after the other.

    What a passage ends with, the next one begins with.
    """

    tokens: int = Field(120, gt=8, description="tokens per passage, headings included")
    overlap: int = Field(1, ge=0, description="sentences that a passage shares with the one before it")

    def cut(self, blocks: Iterable[Block], count: Count, most: int) -> Iterator[Chunk]:
        def to_pieces(block: Block, tokens: int, wanted: int, most: int) -> Iterable[BlockPiece]:
            return cut_at(block, SENTENCE if block.kind == "text" else LINE, wanted, count)

        def carry(pieces: Sequence[BlockPiece]) -> Sequence[BlockPiece]:
            return pieces[len(pieces) - self.overlap :]

        return Filler(count, self.tokens, most, to_pieces, carry).passages(blocks)
