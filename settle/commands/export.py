"""A run's model as a file for other programs."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.events import Events
from settle.base.run import Run, home
from settle.commands import Command


class Export(Command):
    """Write a run's model as GGUF (llama.cpp, Ollama, LM Studio) or safetensors (transformers, vLLM, MLX).

    A GGUF is handed over only when it behaves in llama.cpp like the model that was trained.
    """

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str = Field(description="the run")
    to: Literal["gguf", "safetensors"] = Field("gguf", description="format of the file")
    dtype: Literal["f32", "f16", "bf16", "q8_0"] = Field("f16", description="type of the weights")
    out: Path | None = Field(
        None, description="file (gguf) or folder (safetensors) to write; in this folder if not given"
    )

    def run(self, events: Events) -> int:
        run = Run.find(self.name)
        source = run.out / "hf"
        if not source.is_dir():
            raise UsageError(f"{run.name} has no finished model", f"`settle resume {run.name}` finishes it")
        suffix = ".gguf" if self.to == "gguf" else ""
        path = self.out or Path(f"{run.name}-{self.dtype}{suffix}")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}", "make it first, or choose another --out")
        events.emit("say", text=f"reading {run.name} …")
        figures = self._gguf(run, source, path, events) if self.to == "gguf" else self._safetensors(source, path)
        events.emit("say", text=f"wrote {path}")
        events.emit("result", result={"path": str(path), "format": self.to, "dtype": self.dtype, "gate": figures})
        return 0

    def _gguf(self, run: Run, source: Path, path: Path, events: Events) -> dict[str, object]:
        from settle.evaluate.gate import export_through_gate
        from settle.evaluate.hand_over import tell
        from settle.formats.gguf import card_of
        from settle.infer.live import load

        live = load(source)
        card = card_of(run.out / f"{run.name}.gguf")
        texts = _held_out(run, live.tokenizer, events)
        figures = export_through_gate(
            live.model, live.part, live.weights, live.tokenizer, path, texts, self.dtype, card
        )
        tell(figures, events)
        return figures

    def _safetensors(self, source: Path, path: Path) -> dict[str, object]:
        from settle.formats.safetensors import export_safetensors
        from settle.infer.live import load

        if self.dtype == "q8_0":
            raise UsageError("safetensors has no q8_0", "use --dtype f32, f16 or bf16, or --to gguf")
        live = load(source)
        export_safetensors(live.part, live.weights, live.tokenizer, path, self.dtype, {"name": self.name})
        return {}


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
