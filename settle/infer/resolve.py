"""Models by name as llama.cpp serves them: of runs, of the store, or any file."""

from pathlib import Path
from typing import NamedTuple

from settle.base.errors import FormatError, RunError, UsageError
from settle.base.models import StoredModel, all_models, find_model
from settle.base.run import Run, read_json
from settle.infer.child_process import Draft


class Served(NamedTuple):
    """A model as llama.cpp serves it: a GGUF file, and a LoRA in another one over it or none."""

    name: str
    path: Path
    adapter: Path | None = None

    def adapts(self, base: "Served") -> bool:
        """Whether this is `base` with an adapter over it."""
        return self.adapter is not None and base.adapter is None and base.path.resolve() == self.path.resolve()


def served(name: str) -> Served:
    """The file behind the name of a run, of a model in the store, or of a .gguf file. Raises UsageError."""
    run = Run.named(name)
    if run is not None:
        adapter = run.out / f"{run.name}-lora.gguf"
        base = ((run.read("plan.json") or {}).get("tuning") or {}).get("base")
        if adapter.exists() and base:
            if not Path(base).is_file():
                raise UsageError(f"{run.name} is an adapter over {base}, which is gone", "put that file back")
            return Served(run.name, Path(base), adapter)
    path = model_file(name)
    return Served(path.stem if name.endswith(".gguf") else name, path)


class Drafting(NamedTuple):
    """A draft, and how many times as fast its model was with it where that was measured; None where it was not."""

    draft: Draft
    speed_up: float | None = None


def drafting(name: str) -> Drafting:
    """The draft that a run of `settle distill --draft` made, proposing as was measured to be best; or any model by name
    that is small enough to be one. Raises UsageError."""
    run = Run.named(name)
    file = run.out / f"{run.name}-draft.gguf" if run else None
    pair = (run.read("result.json") or {}).get("pair") if run else None
    if file and file.exists() and pair:
        return Drafting(Draft(file, pair["draft_tokens"], pair["draft_sure"]), pair["speed_up"])
    model = served(name)
    if model.adapter:
        raise UsageError(f"{name} is an adapter and no draft", "`settle distill MODEL INPUTS --draft` makes one")
    return Drafting(Draft(model.path))


def writers() -> list[str]:
    """Names of the models that answer in turns: of the store, and what runs made. What is damaged is none of them."""
    names = [model.name for model in all_models() if model.kind == "gguf" or _is_language(model.path)]
    names += [run.name for run in Run.all() if any(run.out.glob("[!.]*.gguf"))]
    return [name for name in dict.fromkeys(names) if _takes_turns(name)]


def _is_language(folder: Path) -> bool:
    """Whether a model in Hugging Face's layout writes text."""
    try:
        config = read_json(folder / "config.json")
    except (RunError, OSError):
        return False
    return any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())


def _takes_turns(name: str) -> bool:
    """As its file says; a model that is still to be made a GGUF file is believed to."""
    from settle.formats.gguf import read_gguf
    from settle.formats.lora_gguf import read_lora
    from settle.infer.client import TEMPLATE

    stored = find_model(name) if Run.named(name) is None else None
    if stored is not None and stored.kind != "gguf":
        return True
    try:
        made = served(name)
        metadata = read_gguf(made.path).metadata
        own = read_lora(made.adapter).metadata.get(TEMPLATE) if made.adapter else None
    except (UsageError, FormatError):
        return False
    return bool(own) or bool(metadata.get(TEMPLATE)) and not metadata.get("settle.base")


def model_file(name: str) -> Path:
    """The GGUF file of a run or of a model in the store, or the file of that name. Raises UsageError when there is
    none, naming what there is."""
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        return path
    stored = find_model(name)
    if (path / "config.json").is_file():
        stored = next((m for m in all_models() if m.path.exists() and m.path.samefile(path)), None)
        if stored is None:
            raise UsageError(
                f"{name} is not GGUF, which llama.cpp reads", f"`settle pull {name}`, and then by its name"
            )
    if stored is not None and Run.named(name) is None:
        return stored.path if stored.kind == "gguf" else _as_gguf(stored)
    try:
        run = Run.find(name)
    except UsageError as e:
        models = ", ".join(model.name for model in all_models())
        fix = f"models: {models}; " if models else ""
        raise UsageError(f"there is no run and no model named {name!r}", f"{fix}{e.fix}") from None
    return run.whole_model()


def _as_gguf(stored: StoredModel) -> Path:
    """A model in Hugging Face's layout as GGUF, which llama.cpp reads; made once, and kept in the store."""
    from settle.formats.gguf import export_gguf
    from settle.model.pretrained import Pretrained

    path = stored.folder / f"{stored.name}-bf16.gguf"
    if not path.exists():
        model = Pretrained.open(stored.path)
        export_gguf(model.part, model.lazy_weights(), model.tokenizer, path, "bf16", {"name": stored.name})
    return path
