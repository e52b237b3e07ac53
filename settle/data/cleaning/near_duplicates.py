"""Removal of documents that are nearly equal to an earlier one: other versions, copies with another date."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from settle.data.cleaning import Cleaning
from settle.data.document_buffer import DocumentBuffer
from settle.data.similarity import Similarity


class NearDuplicates(Cleaning):
    """Keeps the first of each cluster of documents that share most of their five-word sequences (MinHash)."""

    rank: ClassVar[int] = 90
    jaccard: float = Field(
        0.85, ge=0.6, le=1, description="Jaccard similarity of the five-word sequences of two documents, as a share"
    )

    def repeats(self, documents: DocumentBuffer) -> tuple[str, np.ndarray]:
        first = Similarity(documents).clusters(self.jaccard)
        return "near duplicate", first != np.arange(len(documents))
