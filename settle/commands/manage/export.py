"""A model that was made here, or a base with an adapter, as files for other programs."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from settle.base.amounts import short_precision
from settle.base.choice import Choice, choice
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.commands import Command
from settle.formats import Format
from settle.machine.threads import ThreadSettings


class Export(ThreadSettings, Command):
    """Write a run's model for llama.cpp, Ollama, vLLM and others.

    Also for LM Studio, transformers, MLX and peft. What llama.cpp reads is written only when it behaves there like the
    model that was trained. A model tuned with an adapter is merged for the formats that hold whole models; `--to
    lora-gguf` and `--to peft` give the adapter by itself.
    """

    is_watched: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str = Field(description="a run, or the folder of an adapter made by peft or Unsloth")
    to: Choice = choice("formats", default="gguf", description="format; lora-gguf and peft hold adapters only")
    dtype: str | None = Field(
        None, description="type of the weights: f32, f16, bf16; for gguf also q8_0, q5_1, q5_0, q4_1, q4_0"
    )
    out: Path | None = Field(None, description="file or folder to write; here if not given")
    force: bool = Field(False, description="replace the file or folder if it exists")
    base: str | None = Field(None, description="model the adapter was trained on; the one that it names if not given")
    merge_limit: float = Field(
        0.02, gt=0, description="nats per token (KL) that merging into a quantized base may cost"
    )

    def run(self, events: Events) -> int:
        from settle.evaluate.gate.export import export_by_name

        name = str(self.to.name)
        shown = name.replace("_", "-")
        dtype = short_precision(self.dtype) if self.dtype else None
        if dtype is not None and dtype not in (known := Format.part(name).dtypes()):
            fix = f"choose --dtype from {', '.join(known)}; `settle shrink {self.name} --to Q4_K_M` makes smaller ones"
            raise UsageError(f"settle export writes no {self.dtype!r} to {shown}", fix)
        form = Format.make(name, {**self.to.settings, **({"dtype": dtype} if dtype else {})})
        path, gate = export_by_name(self.name, form, self.out, self.base, self.merge_limit, events, self.force)
        line = form.next_line(path, Path(self.name).name.rpartition(":")[2])
        events.emit(Say(text=f"next: {line}"))
        result = {"path": str(path), "format": shown, "dtype": form.dtype, "gate": gate, "next": line}
        events.emit(ResultReady(result=result))
        return 0
