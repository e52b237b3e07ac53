"""Texts that a model was not trained on, for the gate to compare on."""

from collections.abc import Mapping

from settle.base.event_log import Events
from settle.base.events import Warn
from settle.base.files import home
from settle.base.run import Run
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import stored_corpus
from settle.data.decisions.corpus import open_decisions
from settle.data.rows.prepare import RowCorpus, prepared_rows
from settle.data.store import RowStore, TokenStore

PROSE = (
    "The river was high that spring, and nobody crossed it before the end of May. When the water fell, the first to go "
    "over was a miller's boy with a letter in his hat; he had been told to ask for no answer and to wait for one. "
    "What he found on the other side was an empty house, a warm stove, and 3 cups on the table.\n\n"
    "He sat down. After an hour, he poured himself some tea.\n",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "# Notes\n\n- buy bread, 2 litres of milk (1.5 %), and a dozen eggs\n- call the office before 17:30\n\n"
    "| day | hours |\n|-----|-------|\n| Mon | 7.5   |\n| Tue | 8     |\n",
)


def held_out_texts(store: TokenStore | RowStore, tokenizer: Tokenizer, most_tokens: int = 60_000) -> list[str]:
    """Return documents of a token store as text, evenly spread: about `most_tokens` in all.

    At least 8 documents if it has them, none longer than an eighth of the whole.
    """
    number = store.num_documents
    stride = min(max(1, round(store.num_tokens / most_tokens)), max(1, number // 8))
    return [tokenizer.decode(store.document(i)[:-1][: most_tokens // 8]) for i in range(0, number, stride)][:2000]


def _rows_of(record: Mapping[str, object]) -> RowCorpus | None:
    """Return the rows that a tuned model was made from, by the run's plan; None when they were removed."""
    fingerprint = str(record.get("corpus"))
    if record.get("objective") == "decision":
        return stored_corpus(fingerprint, open_decisions)
    return prepared_rows(fingerprint)


def held_out_text(run: Run, tokenizer: Tokenizer, events: Events, most_tokens: int = 60_000) -> list[str]:
    """Return the run's held-out text; when its token store was removed, prose that is always there."""
    record = run.read("plan.json") or {}
    folder = home() / "tokens" / str(record.get("corpus")) / "held_out"
    rows = _rows_of(record) if record.get("tuning") else None
    if rows is not None:
        return held_out_texts(rows.held_out, tokenizer, most_tokens)
    if folder.is_dir() and not record.get("tuning"):
        return held_out_texts(TokenStore(folder), tokenizer, most_tokens)
    events.emit(Warn(text="the run's held-out text is gone; the file is compared on a few built-in texts instead"))
    return list(PROSE)
