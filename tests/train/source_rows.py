"""The documents behind a batch that a test made by hand."""

import numpy as np

from settle.data.batches import Batch
from settle.train.proof.source import SourceRow


def source_rows(batch: Batch, file: str = "rows.jsonl") -> list[SourceRow]:
    """One document a segment: its targets, and where they are not learned its next inputs."""
    rows = []
    for number, (first, last) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        targets = batch.targets[first:last]
        following = np.append(batch.inputs[first + 1 : last], 0)
        document = np.where(targets >= 0, targets, following)
        before, learned = int(batch.inputs[first]), (targets >= 0).astype(np.uint8)
        rows.append(SourceRow(f"{file}:{number}", document, 0, len(document), before, learned))
    return rows
