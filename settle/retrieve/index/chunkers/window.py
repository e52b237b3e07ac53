"""Passages of equal length that overlap, wherever sentences begin and end."""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field

from settle.documents.blocks import Block, Chunk
from settle.retrieve.index.chunkers import Chunker, Count
from settle.retrieve.index.chunkers._fill_passages import WORD, BlockPiece, Filler, cut_at

WORDS = 8  # that are kept together: a window moves by them


class SlidingWindow(Chunker):
    """The usual sliding window, but it stays inside a section."""

    tokens: int = Field(200, gt=8, description="tokens per passage, headings included; at most the embedder's limit")
    overlap: int = Field(40, ge=0, description="tokens that a passage shares with the one before it")

    def cut(self, blocks: Iterable[Block], count: Count, most: int) -> Iterator[Chunk]:
        def to_pieces(block: Block, tokens: int, wanted: int, most: int) -> Iterable[BlockPiece]:
            return cut_at(block, WORD, wanted, count, every=WORDS)

        def carry(pieces: Sequence[BlockPiece]) -> Sequence[BlockPiece]:
            first, size = len(pieces), 0
            while first and size + pieces[first - 1].tokens <= self.overlap:
                first -= 1
                size += pieces[first].tokens
            return pieces[first:]

        return Filler(count, self.tokens, most, to_pieces, carry).passages(blocks)
