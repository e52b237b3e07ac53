"""Passages that follow the document: paragraphs of one section together, listings and tables whole where they fit."""

from collections.abc import Iterable, Iterator

from pydantic import Field

from settle.documents.blocks import Block, Chunk
from settle.retrieve.index.chunkers import Chunker, Count
from settle.retrieve.index.chunkers._fill_passages import BlockPiece, Filler, cut, whole


class Structure(Chunker):
    """Paragraphs of one section together, listings and tables whole.

    A block that the embedder can read whole is never cut. A longer one is cut at empty lines, sentences, rows or items
    first, and the header of its table is repeated above each part.
    """

    tokens: int = Field(200, gt=8, description="tokens per passage, headings included; at most the embedder's limit")

    def cut(self, blocks: Iterable[Block], count: Count, most: int) -> Iterator[Chunk]:
        def to_pieces(block: Block, tokens: int, wanted: int, most: int) -> Iterable[BlockPiece]:
            return [whole(block, tokens)] if tokens <= most else cut(block, wanted, count)

        return Filler(count, self.tokens, most, to_pieces).passages(blocks)
