"""A run's model as a file for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.events import Events
from settle.base.registry import part
from settle.base.run import Run, home
from settle.commands import Command

if TYPE_CHECKING:
    from settle.formats import Format


class Export(Command):
    """Write a run's model as GGUF (llama.cpp, Ollama, LM Studio) or safetensors (transformers, vLLM, MLX).

    A GGUF is handed over only when it behaves in llama.cpp like the model that was trained.
    """

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str = Field(description="the run")
    to: str = Field("gguf", description="gguf or safetensors")
    dtype: str = Field("f16", description="type of the weights: f32, f16, bf16, and for gguf q8_0")
    out: Path | None = Field(None, description="file (gguf) or folder (safetensors) to write; here if not given")

    def run(self, events: Events) -> int:
        from settle.formats import Format

        run = Run.find(self.name)
        source = run.out / "hf"
        if not source.is_dir():
            raise UsageError(f"{run.name} has no finished model", f"`settle resume {run.name}` finishes it")
        form = part("formats", self.to)
        assert issubclass(form, Format)
        known = get_args(form.model_fields["dtype"].annotation)
        if self.dtype not in known:
            raise UsageError(f"{self.to} has no type {self.dtype!r}", f"--dtype one of: {', '.join(known)}")
        path = self.out or Path(f"{run.name}-{self.dtype}{form.suffix}")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}", "make it first, or choose another --out")
        events.emit("say", text=f"reading {run.name} …")
        gate = self._write(run, form(dtype=self.dtype), path, events)
        events.emit("say", text=f"wrote {path}")
        events.emit("result", result={"path": str(path), "format": self.to, "dtype": self.dtype, "gate": gate})
        return 0

    def _write(self, run: Run, form: "Format", path: Path, events: Events) -> dict[str, Any] | None:
        """The gate's figures; None for a format that llama.cpp does not read."""
        from settle.evaluate.gate import export_through_gate
        from settle.evaluate.hand_over import tell
        from settle.formats.gguf import card_of
        from settle.infer.live import load

        live = load(run.out / "hf")
        card = card_of(run.out / f"{run.name}.gguf")
        if form.suffix != ".gguf":
            form.write(path, live.part, live.weights, live.tokenizer, card)
            return None
        texts = _held_out(run, live.tokenizer, events)
        figures = export_through_gate(
            live.model, live.part, live.weights, live.tokenizer, path, texts, self.dtype, card
        )
        tell(figures, events)
        return figures


def _held_out(run: Run, tokenizer: object, events: Events) -> list[str]:
    """The run's held-out text; when its token store was removed, prose that is always there."""
    from settle.data.store import TokenStore
    from settle.evaluate.gate import PROSE, held_out_texts

    corpus = (run.read("plan.json") or {}).get("corpus")
    folder = home() / "tokens" / str(corpus) / "held_out"
    if folder.is_dir():
        return held_out_texts(TokenStore(folder), tokenizer)
    events.emit("warn", text="the run's held-out text is gone; the file is compared on a few built-in texts instead")
    return list(PROSE)
