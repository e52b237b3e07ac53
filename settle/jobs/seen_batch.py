"""Prints, as JSON, what a run read at each of some steps: where its batch is from, and how it begins.

    python -m settle.jobs.seen_batch RUN_FOLDER STEP ...

What reads the prepared data takes memory that the studio does not. A batch is a function of the
seed and its number, so the very text that was read is found again.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from settle.base.run import Run
from settle.data.batches import Batches, RowBatches
from settle.data.prepare import Corpus, prepared
from settle.data.rows.prepare import RowCorpus, prepared_rows

CHARACTERS = 400  # of the text that is shown


def seen_at(corpus: Corpus | RowCorpus, plan: Mapping[str, object], step: int) -> dict[str, object]:
    """Return the batch that the run read at a step.

    origin: file and place; text: how the batch begins, "" for rows, whose tokenizer is their model's; passes: over the
    data before it.
    """
    loop, tuning = plan["loop"], plan.get("tuning")
    assert isinstance(loop, Mapping)
    position, seed = max(0, step - 1) * int(loop["micro_batches"]), int(loop["seed"])
    if isinstance(corpus, RowCorpus):
        assert isinstance(tuning, Mapping)
        rows = RowBatches(corpus.train, int(tuning["rows"]), seed)
        document = rows.rows_of(position)[0][0]
        return {"origin": corpus.train.origin(document), "text": "", "passes": rows.epoch(position)}
    size = int(loop["tokens_per_step"]) // int(loop["micro_batches"])
    batches = Batches(corpus.train, int(loop["sequence_length"]), size, seed)
    document, start, stop = batches.rows_of(position)[0]
    ids = corpus.train.document(document)[start:stop].tolist()
    text = corpus.tokenizer.decode(ids)[:CHARACTERS]
    return {"origin": corpus.train.origin(document), "text": text, "passes": batches.epoch(position)}


def main() -> None:
    run = Run(Path(sys.argv[1]))
    plan = run.read("plan.json")
    fingerprint = str(plan["corpus"])
    corpus = prepared_rows(fingerprint) if plan.get("tuning") else prepared(fingerprint)
    seen = {} if corpus is None else {step: seen_at(corpus, plan, int(step)) for step in sys.argv[2:]}
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
