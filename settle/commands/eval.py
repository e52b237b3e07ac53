"""settle eval: is a tuned model better than its base, on what, and what did it forget?"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady
from settle.base.run import Run
from settle.commands import Command
from settle.infer.resolve import Served, served

if TYPE_CHECKING:
    from settle.data.layouts import Example


class Eval(Command):
    """Compare a tuned model with its base: on rows that were held out, on what both knew, and on instructions.

    Both answer the same rows in llama.cpp. The verdict is better, no different or worse, with an interval; the exit
    code is 0 when it is better and 3 when it is not.
    """

    positional: ClassVar[tuple[str, ...]] = ("tuned",)

    tuned: str = Field(description="a run, a model in the store, or a .gguf file")
    against: str | None = Field(
        None, description="what to compare it with; the model that it was made from if not given"
    )
    adapter: Path | None = Field(None, description="a LoRA in a .gguf file, to be served over TUNED")
    rows: Path | None = Field(None, description="rows to ask, which it was not trained on; the run's held-out rows")
    score: str | None = Field(
        None,
        description="exact, f1, regex:PATTERN, json, tool_call or a Python file; chosen from the data if not given",
    )
    limit: int = Field(200, gt=0, description="ask at most this many rows")
    max_tokens: int | None = Field(
        None, gt=0, description="longest answer, in tokens; half more than nearly all wanted answers if not given"
    )
    familiar: Path | None = Field(
        None, description="text that the base knew, to see what is forgotten; the base writes some if not given"
    )
    only_rows: bool = Field(False, description="leave out what was forgotten, and the instructions")

    def run(self, events: Events) -> int:
        from settle.evaluate.compare.candidate_pair import contenders, readers
        from settle.evaluate.compare.compare import compare, tell
        from settle.evaluate.tasks import named

        if self.score:
            named(self.score)  # a score that is none is refused before anything is loaded
        tuned = served(self.tuned)
        if self.adapter:
            tuned = Served(self.adapter.stem, tuned.path, self.adapter)
        base = self._base(tuned)
        examples = rows_of(self.rows, events) if self.rows else held_out(self.tuned)
        familiar = [_text(self.familiar)] if self.familiar else None
        with contenders(base, tuned) as (ours, theirs):
            comparison = compare(
                ours,
                theirs,
                examples,
                events,
                score=self.score,
                limit=self.limit,
                max_tokens=self.max_tokens,
                familiar=familiar,
                only_rows=self.only_rows,
                readers=readers(base, tuned),
            )
        tell(comparison, events)
        result = comparison.to_json() | {"why": comparison.headline}
        events.emit(ResultReady(result=result))
        return 0 if comparison.verdict == "better" else 3

    def _base(self, tuned: Served) -> Served:
        if self.against:
            return served(self.against)
        if tuned.adapter:
            return Served(tuned.path.stem, tuned.path)
        run = Run.named(self.tuned)
        tuning = (run.read("plan.json") or {}).get("tuning") if run else None
        if tuning and Path(tuning["base"]).exists():
            return served(tuning["base"])._replace(name=tuning["base_name"])
        raise UsageError(f"what is {tuned.name} to be compared with?", "give its base: --against NAME")


def held_out(name: str) -> list["Example"]:
    """The rows that a run kept from its training. Raises UsageError when there are none."""
    from settle.data.rows.prepare import prepared_rows

    run = Run.named(name)
    record = (run.read("plan.json") if run else None) or {}
    corpus = prepared_rows(str(record.get("corpus"))) if record.get("tuning") else None
    if corpus is None:
        raise UsageError(f"no rows are kept that {name} was not trained on", "give some: --rows FILE")
    return list(corpus.examples())


def rows_of(path: Path, events: Events) -> list["Example"]:
    """The examples of a file or folder, as `settle tune` reads them. Raises DataError for rows that cannot be used."""
    from settle.data.files import find_files
    from settle.data.ledger import Ledger
    from settle.data.rows.read_rows import RowReading
    from settle.data.settings import ColumnSettings
    from settle.data.workspace import workspace

    ledger = Ledger()
    with workspace() as work:
        reading = RowReading(find_files([str(path)], work, ledger), ColumnSettings.model_validate({}), ledger, events)
        examples = [example for _, _, example in reading.examples()]
    if reading.refused.count:
        raise DataError(f"{reading.refused.count} of the rows cannot be used: {reading.refused}", "mend or remove them")
    return examples


def _text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}", "give a file of plain text") from None
