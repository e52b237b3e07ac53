"""Files of text: prose, markup, source code, notebooks and web pages."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from settle.documents.decode import decoded
from settle.documents.readers import Reader
from settle.documents.rows import Row, cut


class VerbatimReader(Reader):
    """A file is a document; a file of more than two million characters is several, cut at paragraphs."""

    row_format: ClassVar[str] = "text"

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for number, text in enumerate(cut(decoded(stream)), 1):
            yield {"text": text, "row": number}
