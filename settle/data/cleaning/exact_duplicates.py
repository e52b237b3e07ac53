"""Removal of documents that are equal to an earlier one."""

from typing import ClassVar

import numpy as np

from settle.data.cleaning import Cleaning
from settle.data.document_buffer import DocumentBuffer


class ExactDuplicates(Cleaning):
    """Keeps the first of equal documents."""

    rank: ClassVar[int] = 80

    def repeats(self, documents: DocumentBuffer) -> tuple[str, np.ndarray]:
        _, first = np.unique(documents.hashes, return_index=True)
        repeated = np.ones(len(documents), bool)
        repeated[first] = False
        return "exact duplicate", repeated
