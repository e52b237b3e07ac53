"""settle tune: fine-tune a pretrained model on your own examples."""

from typing import ClassVar

from settle.base.event_log import Events
from settle.commands import Command
from settle.jobs.settings import TUNING_JOBS, TuneSettings


class Tune(TuneSettings, Command):
    """Fine-tune a model on your examples, and compare it with its base.

    Tuning stops when the model stops improving. MODEL is a run, a model of the store (`settle pull`), a folder in
    Hugging Face's layout or a .gguf file. INPUTS are files of examples: messages, prompt and completion, Alpaca,
    ShareGPT, pairs of a chosen and a rejected answer, or plain text; as jsonl, json, csv or parquet. `--dry` shows the
    plan, the forecast and some rows as the model learns them.

    An encoder such as minilm learns from pairs of a question and a passage, perhaps with a label of 1 or 0:
    `--objective rank` trains a reranker over it, `--objective contrastive` the encoder itself.

    The exit code is 3 when the tuned model is not better than its base on the held-out rows.
    """

    positional: ClassVar[tuple[str, ...]] = ("model", "inputs")
    begins_work: ClassVar[bool] = True
    essential: ClassVar[tuple[str, ...]] = (
        "name", "time", "epochs", "steps", "tolerance", "adapter", "quantize", "batch_rows", "score", "dry",
        "recipe", "seed", "seeds", "device", "dtype", "threads",
    )  # fmt: skip

    def run(self, events: Events) -> int:
        whole = self.with_recipe().value
        whole.check("tune")  # before torch is loaded
        from settle.jobs.ranks.start import start_run

        return start_run(TUNING_JOBS.get(str(whole.objective.name), "tune"), self, events)
