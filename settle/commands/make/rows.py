"""settle rows: examples to learn from, made from documents, each with a receipt."""

from typing import ClassVar

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.commands import Command
from settle.jobs.settings import RowsSettings


class Rows(RowsSettings, Command):
    """Make examples from documents, each with a receipt.

    `settle rows docs` writes questions that the documents answer, with the answers in their own words, to rows.jsonl,
    and `settle tune MODEL rows.jsonl` learns from them. Each row has its receipt: the passage and the place in it, who
    wrote the question, and how it was verified by another way than it was made. Rows that fail are kept beside it with
    the reason. PATHS are folders and files, or the name of a collection; folders are indexed first. After Ctrl-C the
    same command makes the same rows.
    """

    positional: ClassVar[tuple[str, ...]] = ("paths",)

    def run(self, events: Events) -> int:
        try:
            from settle.jobs.rows import make_rows
        except ModuleNotFoundError as e:
            raise UsageError(f"rows from documents need {e.name}", extra_command("rag")) from None
        return make_rows(self, events)
