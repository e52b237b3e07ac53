"""A model that was made here, or a base with an adapter, as files for other programs."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say, Warn
from settle.base.registry import part, part_names
from settle.base.run import Run
from settle.commands import Command
from settle.commands._session import held_out_text

if TYPE_CHECKING:
    from settle.formats import Format
    from settle.model.load_adapter import TrainedAdapter
    from settle.model.pretrained import Pretrained


class Export(Command):
    """Write a run's model for llama.cpp, Ollama, LM Studio, transformers, vLLM, MLX or peft.

    What llama.cpp reads is handed over only when it behaves there like the model that was trained. A model tuned with
    an adapter is merged for the formats that hold whole models; `--to lora-gguf`, `--to peft` and, over a GGUF base,
    `--to ollama` give the adapter by itself.
    """

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str = Field(description="a run, or the folder of an adapter made by peft or Unsloth")
    to: str = Field("gguf", description="gguf, safetensors, mlx, ollama, lmstudio; of an adapter also lora-gguf, peft")
    dtype: str | None = Field(
        None, description="type of the weights: f32, f16, bf16; for gguf also q8_0, q5_1, q5_0, q4_1, q4_0"
    )
    out: Path | None = Field(None, description="file or folder to write; here if not given")
    base: str | None = Field(None, description="model that the adapter was trained on; what it says if not given")
    merge: bool = Field(False, description="merge the adapter where it could be served over its base (ollama)")
    merge_limit: float = Field(
        0.02, gt=0, description="nats per token (KL) that merging into a quantized base may cost"
    )

    def run(self, events: Events) -> int:
        from settle.formats import Format

        form = part("formats", self.to.replace("-", "_"))
        assert issubclass(form, Format)
        dtype = self._dtype(form)
        model = self._model(form, events)
        path = self.out or _place(form(dtype=dtype), self.to, model.name, dtype)
        if not path.parent.is_dir():
            if self.out:
                raise UsageError(f"there is no folder {path.parent}", "make it first, or choose another --out")
            path.parent.mkdir(parents=True)
        events.emit(Say(text=f"reading {model.name} …"))
        gate = self._write(model, form(dtype=dtype), path, events)
        events.emit(Say(text=f"wrote {path}"))
        events.emit(ResultReady(result={"path": str(path), "format": self.to, "dtype": dtype, "gate": gate}))
        return 0

    def _dtype(self, form: type["Format"]) -> str:
        known = form.dtypes()
        default = form.model_fields["dtype"].default if form.holds == "adapter" or "mlx" in self.to else "f16"
        if self.dtype is not None and self.dtype not in known:
            raise UsageError(f"{self.to} has no type {self.dtype!r}", f"--dtype one of: {', '.join(known)}")
        return str(self.dtype or default)

    def _model(self, form: type["Format"], events: Events) -> "_Whole | _Adapted":
        if (Path(self.name).expanduser() / "adapter_config.json").is_file():
            return _of_folder(Path(self.name).expanduser(), self.base, events)
        run = Run.find(self.name)
        if (run.out / "adapter").is_dir():
            return _of_adapter_run(run, self.base, events)
        if not (run.out / "hf").is_dir():
            raise UsageError(f"{run.name} has no finished model", f"`settle resume {run.name}` finishes it")
        if form.holds == "adapter":
            raise UsageError(
                f"{run.name} trained every weight: it has no adapter", f"--to one of: {', '.join(_of_models())}"
            )
        return _of_run(run, events)

    def _write(self, model: "_Whole | _Adapted", form: "Format", path: Path, events: Events) -> dict[str, Any] | None:
        """The gate's figures; None for a format that llama.cpp does not read."""
        from settle.evaluate.gate.export import tell
        from settle.evaluate.gate.gate import Merged, export_through_gate

        over_base = isinstance(model, _Adapted) and not self.merge and model.file and model.adapter.lora is not None
        if isinstance(model, _Adapted) and (form.holds == "adapter" or (self.to == "ollama" and over_base)):
            return _adapter_alone(model, self.to, form.dtype, path, events)
        part, weights, tokenizer, live = model.alive()
        if self.to in ("safetensors", "mlx"):
            form.write(path, part, weights, tokenizer, model.card)
            return None
        merged = Merged(model.base.weights, model.base_type, self.merge_limit) if isinstance(model, _Adapted) else None
        figures = export_through_gate(
            live, part, weights, tokenizer, path, model.texts, form.dtype, model.card, form=form, merged=merged
        )
        tell(figures, events)
        return figures


@dataclass(frozen=True)
class _Whole:
    """A model whose every weight is in a folder of Hugging Face's layout. theirs: with a tokenizer made by others."""

    name: str
    folder: Path
    theirs: bool
    card: dict[str, Any]
    texts: list[str]

    def alive(self) -> tuple[Any, Any, Any, Any]:
        """(architecture, weights, tokenizer, live model)."""
        if not self.theirs:
            from settle.infer.live.exported_model import load

            live = load(self.folder)
            return live.part, live.weights, live.tokenizer, live.model
        from settle.library.pretrained import open_pretrained

        opened = open_pretrained(self.folder)
        return opened.part, opened.weights, opened.tokenizer, opened.load(trainable=True).eval()


@dataclass(frozen=True)
class _Adapted:
    """An adapter and the model that it was trained on. file: that model's GGUF, if it is one. template: the chat
    template that the adapter was trained with, where it takes turns as its base does not."""

    name: str
    base: "Pretrained"
    adapter: "TrainedAdapter"
    card: dict[str, Any]
    texts: list[str]
    template: str | None = None

    @property
    def file(self) -> Path | None:
        return self.base.source.path if self.base.source.kind == "gguf" else None

    @property
    def base_type(self) -> str:
        """The type that most of the base's bytes have."""
        return max(self.base.kinds, key=self.base.kinds.__getitem__)

    def alive(self) -> tuple[Any, Any, Any, Any]:
        """(architecture, merged weights, tokenizer, live model)."""
        from settle.model.adapters import Merged
        from settle.model.load_adapter import adapted

        live = adapted(self.base, self.adapter)
        tokenizer = self.base.tokenizer.with_template(self.template) if self.template else self.base.tokenizer
        return self.base.part, Merged(live), tokenizer, live


def _adapter_alone(model: _Adapted, to: str, dtype: str, path: Path, events: Events) -> dict[str, Any] | None:
    """The adapter by itself: for peft as it is, for llama.cpp through the gate over its base's file."""
    from settle.evaluate.gate.diagnose import Origin
    from settle.evaluate.gate.export import tell
    from settle.evaluate.gate.gate import adapter_through_gate
    from settle.formats.gguf import export_gguf
    from settle.formats.ollama import modelfile
    from settle.formats.peft import export_peft

    base = model.base
    if to == "peft":
        export_peft(base.part, model.adapter, path, dtype)
        return None
    architecture, _, tokenizer, live = model.alive()
    origin = Origin(architecture, base.weights, adapter=model.adapter)
    if to == "ollama":
        path.mkdir(exist_ok=True)
    file, dtype = (path / f"{model.name}-lora.gguf", "f32") if to == "ollama" else (path, dtype)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".base-") as folder:
        under = model.file or export_gguf(architecture, base.weights, tokenizer, Path(folder) / "base.gguf")
        card = model.card | {"template": model.template}
        figures = adapter_through_gate(live, origin, tokenizer, file, under, model.texts, dtype, card)
    tell(figures, events)
    if to == "ollama":
        source, context = str(under.resolve()), architecture.max_position_embeddings
        text = modelfile(source, tokenizer, context, bool(card.get("base")), f"./{file.name}")
        (path / "Modelfile").write_text(text, encoding="utf-8")
    return figures


def _of_run(run: Run, events: Events) -> _Whole:
    from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
    from settle.formats.gguf import card_of

    folder, record = run.out / "hf", run.read("plan.json") or {}
    card = card_of(run.out / f"{run.name}.gguf")
    if record.get("tuning"):
        from settle.library.pretrained import open_pretrained

        return _Whole(run.name, folder, True, card, held_out_text(run, open_pretrained(folder).tokenizer, events))
    return _Whole(run.name, folder, False, card, held_out_text(run, ByteBpeTokenizer(folder), events))


def _of_adapter_run(run: Run, base: str | None, events: Events) -> _Adapted:
    from settle.library.pretrained import open_pretrained
    from settle.model.load_adapter import open_adapter

    opened = open_pretrained(base or str((run.read("plan.json") or {})["tuning"]["base"]))
    texts, adapter = held_out_text(run, opened.tokenizer, events), open_adapter(run.out / "adapter")
    template, goes_on = _turns(run, opened)
    card = {"name": run.name} | ({"base": True} if goes_on else {})
    return _Adapted(run.name, opened, adapter, card, texts, template)


def _turns(run: Run, base: "Pretrained") -> tuple[str | None, bool]:
    """The chat template of a tuned model where its base has another or takes no turns, and whether it takes none itself
    but goes on with texts: by the file that the run made."""
    from settle.formats.gguf import read_gguf

    files = [run.out / f"{run.name}{end}" for end in ("-lora.gguf", ".gguf")]
    made = next((read_gguf(file).metadata for file in files if file.exists()), {})
    template, was_plain = made.get("tokenizer.chat_template"), bool(base.metadata.get("settle.base"))
    if not template or made.get("settle.base"):
        return None, was_plain
    return (template if was_plain or template != base.tokenizer.chat_template else None), False


def _of_folder(folder: Path, base: str | None, events: Events) -> _Adapted:
    from settle.evaluate.gate.gate import PROSE
    from settle.library.pretrained import open_pretrained
    from settle.model.load_adapter import open_adapter

    adapter, name = open_adapter(folder), folder.resolve().name
    try:
        opened = open_pretrained(base or adapter.base or "")
    except UsageError as e:
        says = f"{name} was trained on {adapter.base or 'a model that it does not name'}"
        raise UsageError(f"{says}, and {e.what}", "give it: --base NAME, a folder or a .gguf") from None
    events.emit(Warn(text="no text is known that it was not trained on: it is compared on a few built-in texts"))
    return _Adapted(name, opened, adapter, {"name": name}, list(PROSE))


def _place(form: "Format", to: str, name: str, dtype: str) -> Path:
    """Where a model is written to when nobody says."""
    from settle.formats.lmstudio import LmStudio

    if isinstance(form, LmStudio):
        return form.place(name)
    ends = {"gguf": f"-{dtype}.gguf", "lora_gguf": "-lora.gguf", "peft": "-adapter", "safetensors": f"-{dtype}"}
    return Path(name + ends.get(to.replace("-", "_"), f"-{to}"))


def _of_models() -> list[str]:
    """The formats that hold whole models."""
    return [name for name in part_names("formats") if getattr(part("formats", name), "holds", "") == "model"]
