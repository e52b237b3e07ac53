"""Exports of what has a name: a run's model or adapter, or an adapter in a folder of PEFT's."""

from pathlib import Path

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Say, Warn
from settle.base.run import Run
from settle.evaluate.gate.behaviour import Figures
from settle.evaluate.gate.decision_gate import DECISION_FILE, gate_of_run, keys_of
from settle.evaluate.gate.export import (
    ADAPTER_FOLDER,
    HF_FOLDER,
    Check,
    ExportedAdapter,
    ExportedModel,
    emit_gate_checks,
    export,
)
from settle.evaluate.gate.held_out import PROSE, held_out_text
from settle.formats import Format, GgufLayout
from settle.formats.gguf import card_of, read_gguf
from settle.formats.gguf.metadata import text
from settle.formats.peft import CONFIG
from settle.infer.live.exported_model import load
from settle.library.pretrained import open_pretrained
from settle.library.recommended_sampling import sampling_keys
from settle.library.resolve import find_run
from settle.library.run_models import models_of
from settle.model.load_adapter import open_adapter
from settle.model.pretrained import Pretrained
from settle.model.source import Source


def export_by_name(
    name: str,
    form: Format,
    out: Path | None,
    base: str | None,
    merge: bool,
    limit: float,
    events: Events,
    replace: bool = False,
) -> tuple[Path, Figures | None]:
    """Write what is called `name` in a format: the path, and the gate's figures or None. out: the format's own default
    when None. base, merge, limit: of an adapter, as in `settle export`. replace: a file that is there is overwritten.
    Raises UsageError, GateError."""
    exported = _exported(name, base, form, events)
    path = out or form.default_path(exported.name)
    if path.exists() and not replace:
        raise UsageError(f"{path} exists already", "choose another --out, or add --force to replace it")
    if not path.parent.is_dir():
        if out:
            raise UsageError(f"there is no folder {path.parent}", "make it first, or choose another --out")
        path.parent.mkdir(parents=True)
    events.emit(Say(text=f"reading {exported.name} …"))
    figures = export(exported, form, path, merge, limit, _check(name, exported, form))
    if figures is not None:
        emit_gate_checks(figures, events)
    events.emit(Say(text=f"wrote {path}"))
    return path, figures


def _check(name: str, exported: ExportedModel | ExportedAdapter, form: Format) -> Check | None:
    """What is asked of the file beside what is asked of every one: of a decision model, its answers."""
    run = find_run(name) if exported.gguf_keys else None
    gate = gate_of_run(run, exported.model, exported.tokenizer, form.dtype) if run else None
    return gate.run if gate else None


def _gguf_keys(run: Run, architecture: GgufLayout) -> dict[str, object]:
    """The keys of the run's decision model, none where it made another one."""
    decision = run.read(f"out/{DECISION_FILE}")
    return keys_of(decision).metadata(architecture.gguf_architecture) if decision else {}


def _recommended(run: Run) -> dict[str, object]:
    """The keys of how its answers are drawn, as in the file that the run made; none where that is gone."""
    file = run.out / f"{run.name}.gguf"
    return sampling_keys(Source(file, "gguf", run.name), read_gguf(file).metadata) if file.exists() else {}


def _exported(name: str, base: str | None, form: Format, events: Events) -> ExportedModel | ExportedAdapter:
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return _adapter_of_folder(folder, base, events)
    run = find_run(name) or Run.find(name)
    if (run.out / ADAPTER_FOLDER).is_dir():
        return _adapter_of_run(run, base, events)
    if not (run.out / HF_FOLDER).is_dir():
        raise UsageError(f"{run.name} has no finished model", f"`settle resume {run.name}` finishes it")
    if form.holds == "adapter":
        others = [name for name, other in Format.parts().items() if other.holds != "adapter"]
        raise UsageError(f"{run.name} trained every weight: it has no adapter", f"--to one of: {', '.join(others)}")
    return _model_of_run(run, events)


def _model_of_run(run: Run, events: Events) -> ExportedModel:
    folder, card = run.out / HF_FOLDER, card_of(run.out / f"{run.name}.gguf")
    if (run.read("plan.json") or {}).get("tuning"):
        opened = open_pretrained(folder)
        texts, model = held_out_text(run, opened.tokenizer, events), opened.load(trainable=True).eval()
        keys = _recommended(run) | _gguf_keys(run, opened.part)
        return ExportedModel(
            run.name, model, opened.part, opened.weights, opened.tokenizer, texts, card, gguf_keys=keys
        )
    live = load(folder)
    texts = held_out_text(run, live.tokenizer, events)
    return ExportedModel(run.name, live.model, live.part, live.weights, live.tokenizer, texts, card)


def _adapter_of_run(run: Run, base: str | None, events: Events) -> ExportedAdapter:
    opened = open_pretrained(base or str((run.read("plan.json") or {})["tuning"]["base"]))
    texts, adapter = held_out_text(run, opened.tokenizer, events), open_adapter(run.out / ADAPTER_FOLDER)
    template, is_plain = _turns(run, opened)
    tokenizer = opened.tokenizer.with_template(template) if template else opened.tokenizer
    card = {"template": template} | ({"base": True} if is_plain else {})
    return ExportedAdapter(run.name, opened, adapter, tokenizer, texts, card, _gguf_keys(run, opened.part))


def _turns(run: Run, base: Pretrained) -> tuple[str | None, bool]:
    """The chat template of a tuned model where its base has another or takes no turns, and whether it takes none itself
    but completes texts: by the file that the run made."""
    files = [model.path for model in models_of(run) if model.kind != "draft"]
    metadata = read_gguf(Path(files[0])).metadata if files else {}
    template, was_plain = text(metadata, "tokenizer.chat_template"), bool(base.metadata.get("settle.base"))
    if not template or metadata.get("settle.base"):
        return None, was_plain
    return (template if was_plain or template != base.tokenizer.chat_template else None), False


def _adapter_of_folder(folder: Path, base: str | None, events: Events) -> ExportedAdapter:
    adapter, name = open_adapter(folder), folder.resolve().name
    try:
        opened = open_pretrained(base or adapter.base or "")
    except UsageError as e:
        says = f"{name} was trained on {adapter.base or 'a model that it does not name'}"
        raise UsageError(f"{says}, and {e.what}", "give it: --base NAME, a folder or a .gguf") from None
    events.emit(Warn(text="no text is known that it was not trained on: it is compared on a few built-in texts"))
    return ExportedAdapter(name, opened, adapter, opened.tokenizer, list(PROSE))
