"""Exports: files for other programs. What llama.cpp reads is made only if the gate is passed."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from settle.base.errors import FormatError, GateError, ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.events import GateCheck, Say, Warn
from settle.base.files import fsync_folder, read_json, sweep_leftovers, write_atomic
from settle.base.run import Run
from settle.base.tokenizer import Tokenizer
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.evaluate.gate.behaviour import BRIEF, Effort, Figures
from settle.evaluate.gate.decision_gate import DECISION_FILE, gate_of_run, keys_of
from settle.evaluate.gate.diagnose import Origin, kept_text
from settle.evaluate.gate.gate import PROSE, SAME_BLOCKS, Merge, Reference, held_out_text, require, run_gate
from settle.formats import AdapterContents, Format, GgufLayout, Metadata, ModelContents, TensorLike
from settle.formats.gguf import Gguf, card_of, read_gguf
from settle.formats.gguf.metadata import text
from settle.formats.gguf.types import GGML, is_float
from settle.formats.lora_gguf import LoraGguf
from settle.formats.ollama import modelfile
from settle.formats.peft import CONFIG, export_peft
from settle.formats.safetensors import export_safetensors, read_safetensors
from settle.library.catalogue import sampling_keys
from settle.library.convert import as_gguf
from settle.library.pretrained import open_pretrained
from settle.library.resolve import find_run
from settle.library.run_models import models_of
from settle.machine import memory
from settle.model.adapters import Merged
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.families import of_hf_config
from settle.model.load_adapter import TrainedAdapter, adapted, open_adapter
from settle.model.pretrained import Pretrained
from settle.model.source import Source

HF_FOLDER, ADAPTER_FOLDER = "hf", "adapter"
Check = Callable[[Path], Figures]  # of a file that was written; raises GateError


@dataclass(frozen=True)
class ExportedModel:
    """A whole model that is exported.

    model: the live one, which files are compared with. weights: parameter name → tensor, as files hold them.
    held_out_texts: what it was not trained on. card: as in `ModelContents`. merge: when an adapter was merged into the
    weights. gguf_keys: as in `ModelContents`.
    """

    name: str
    model: Decoder
    architecture: Architecture
    weights: Mapping[str, TensorLike]
    tokenizer: Tokenizer
    held_out_texts: Sequence[str]
    card: Mapping[str, object] = field(default_factory=dict)
    merge: Merge | None = None
    gguf_keys: Metadata = field(default_factory=dict)

    @property
    def contents(self) -> ModelContents:
        card = {"name": self.name, **self.card}
        return ModelContents(self.architecture, self.weights, self.tokenizer, card, self.gguf_keys)


@dataclass(frozen=True)
class ExportedAdapter:
    """An adapter that is exported, by itself or merged into its base.

    tokenizer: with the template that it was trained with. held_out_texts: what it was not trained on. card: as in
    `AdapterContents`. gguf_keys: as in `ModelContents`; an adapter with some is always merged, into a file that holds
    them.
    """

    name: str
    base: Pretrained
    adapter: TrainedAdapter
    tokenizer: PretrainedTokenizer
    held_out_texts: Sequence[str]
    card: Mapping[str, object] = field(default_factory=dict)
    gguf_keys: Metadata = field(default_factory=dict)

    @cached_property
    def model(self) -> Decoder:
        """The base with the adapter, live."""
        return adapted(self.base, self.adapter)

    @property
    def served_over_base(self) -> bool:
        """True when llama.cpp can serve it over its base's own file."""
        return self.base.source.kind == "gguf" and self.adapter.lora is not None and not self.gguf_keys

    def contents(self, base_file: Path) -> AdapterContents:
        card = {"name": self.name, **self.card}
        return AdapterContents(self.base.part, self.adapter, self.tokenizer, base_file, card)

    def merged(self, limit: float) -> ExportedModel:
        """Merge into the whole model. limit: nats per token (KL) that merging into a quantized base may cost."""
        base_type = max(self.base.kinds, key=self.base.kinds.__getitem__)
        return ExportedModel(
            self.name,
            self.model,
            self.base.part,
            Merged(self.model),
            self.tokenizer,
            self.held_out_texts,
            {key: value for key, value in self.card.items() if key != "template"},  # the tokenizer brings it
            Merge(self.base.weights, base_type, limit),
            sampling_keys(self.base.source, self.base.metadata) | {**self.gguf_keys},
        )


def export(
    exported: ExportedModel | ExportedAdapter,
    form: Format,
    path: Path,
    limit: float = 0.02,
    check: Check | None = None,
) -> Figures | None:
    """Write `path`. Returns the gate's figures, None for what llama.cpp does not read.

    An adapter is merged where the format holds whole models. check: as of `export_model`. Raises as `export_model`.
    """
    if isinstance(exported, ExportedModel):
        return export_model(exported, form, path, check=check)
    if form.holds == "adapter":
        return export_adapter(exported, form, path)
    return export_model(exported.merged(limit), form, path, check=check)


def export_model(
    exported: ExportedModel, form: Format, path: Path, effort: Effort = BRIEF, check: Check | None = None
) -> Figures | None:
    """Write a whole model to `path`.

    What llama.cpp reads is written only if it passes the gate against the live model, and what else `check` asks of the
    file.

    Returns the gate's figures, those of `check` under "checked". Raises GateError, and then nothing lies at `path` that
    was not there before.
    """
    if not form.for_llama_cpp:
        form.write(path, exported.contents)
        return None
    origin = Origin(exported.architecture, exported.weights, exported.merge.base if exported.merge else None)
    reference = Reference(exported.model, exported.tokenizer, exported.held_out_texts)
    with unproven_place(path) as unproven:
        file = form.gguf(form.write(unproven, exported.contents))
        figures = run_gate(reference, file, form.dtype, effort, origin=origin, merge=exported.merge)
        require(figures, path)
        if check:
            figures["checked"] = check(file)
    return figures


def export_adapter(exported: ExportedAdapter, form: Format, path: Path, effort: Effort = BRIEF) -> Figures | None:
    """Write an adapter by itself to `path`.

    What llama.cpp reads is written only if it behaves there, over the base's file, like the live model. Returns and
    raises as `export_model`.
    """
    origin = Origin(exported.base.part, exported.base.weights, adapter=exported.adapter)
    with as_gguf(exported.base, path.parent, exported.tokenizer) as base:
        contents = exported.contents(base.path)
        if not form.for_llama_cpp:
            form.write_adapter(path, contents)
            return None
        reference = Reference(exported.model, exported.tokenizer, exported.held_out_texts)
        with unproven_place(path) as unproven:
            file = form.gguf(form.write_adapter(unproven, contents))
            figures = run_gate(reference, base.path, form.dtype, effort, origin=origin, lora=file)
            require(figures, path)
    return figures


def export_run_model(
    exported: ExportedModel, out: Path, events: Events, dtype: str = "f16", check: Check | None = None
) -> tuple[dict[str, str], Figures]:
    """Write `out`/NAME.gguf, `out`/hf/ (safetensors, for transformers) and `out`/Modelfile, what a run ends with.

    The live model is left holding the weights. check: as of `export_model`. Returns the files by kind and the gate's
    figures. Raises GateError, and then nothing is in `out` that was not there before.
    """
    exported.model.load_trainable({name: torch.as_tensor(weight) for name, weight in exported.weights.items()})
    architecture, tokenizer = exported.architecture, exported.tokenizer
    file, folder = out / f"{exported.name}.gguf", out / HF_FOLDER
    beside = out / f".{HF_FOLDER}-{os.getpid()}-{secrets.token_hex(4)}"
    sweep_leftovers(out, f".{HF_FOLDER}-")
    try:
        export_safetensors(architecture, exported.weights, tokenizer, beside, "f32", exported.contents.card)
        gate = export_model(exported, Gguf(dtype=dtype), file, check=check)
        assert gate is not None
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    base = bool(exported.card.get("base"))
    write_atomic(out / "Modelfile", modelfile(f"./{file.name}", tokenizer, architecture.max_position_embeddings, base))
    emit_gate_checks(gate, events)
    return {"gguf": str(file), "safetensors": str(folder), "ollama": str(out / "Modelfile")}, gate


def export_run_adapter(
    exported: ExportedAdapter, out: Path, events: Events, dtype: str = "f16", check: Check | None = None
) -> tuple[dict[str, str], Figures]:
    """Write `out`/adapter/ (for peft) and a GGUF file.

    Over a GGUF base the file is `out`/NAME-lora.gguf, over another one the merged `out`/NAME.gguf with `out`/Modelfile.
    Where llama.cpp cannot serve the adapter over a base, these are written in any case. dtype, check: of the merged
    file. Returns and raises as `export_run_model`.
    """
    over_base, part = exported.served_over_base, exported.base.part
    file = out / (f"{exported.name}-lora.gguf" if over_base else f"{exported.name}.gguf")
    if over_base:
        gate = export_adapter(exported, LoraGguf(), file)
    else:
        gate = export_model(exported.merged(0.02), Gguf(dtype=dtype), file, check=check)
    assert gate is not None
    folder = out / ADAPTER_FOLDER
    export_peft(part, exported.adapter, folder)
    exported.tokenizer.save(folder)
    files = {"lora_gguf" if over_base else "gguf": str(file), "adapter": str(folder)}
    if not over_base:
        context, plain = part.max_position_embeddings, bool(exported.card.get("base"))
        write_atomic(out / "Modelfile", modelfile(f"./{file.name}", exported.tokenizer, context, plain))
        files["ollama"] = str(out / "Modelfile")
    emit_gate_checks(gate, events)
    return files, gate


def emit_gate_checks(figures: Figures, events: Events) -> None:
    """Emit the gate's figures as events, one a check."""
    details = {
        "rendered prompts": f"{figures['prompts_equal']} equal byte for byte",
        "token ids": f"{figures['texts_equal']} texts equal",
        "distributions": f"KL {figures['kl']:.1e} nats per token over {figures['positions']} positions",
        "greedy answers": f"{figures['greedy_tokens_equal']} of {figures['greedy_tokens']} tokens equal",
    }
    if checked := figures.get("checked"):
        apart = f"at most {checked['largest_difference']:.4f} apart (bar {checked['bar']})"
        details["decisions"] = f"{checked['rows']} answers of llama.cpp {apart}"
    merge = figures.get("merge")
    if merge:
        details["merge"] = (
            f"into a base of {merge['base_type']}, written as {figures['dtype']}: costs {merge['kl']:.1e} nats per "
            f"token and {kept_text(figures['adapter_kept'])}"
        )
    for check, detail in details.items():
        events.emit(GateCheck(check=check, passed=True, detail=detail))


@contextlib.contextmanager
def unproven_place(path: Path) -> Iterator[Path]:
    """Give a place to write a file or folder to; it becomes `path` when nothing was raised."""
    prefix = ".unproven-"
    sweep_leftovers(path.parent, prefix)
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=path.parent)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}", "choose another place") from None
    with folder as beside:
        unproven = Path(beside) / path.name
        yield unproven
        if path.is_dir():
            path.rename(Path(beside) / "before")
        unproven.replace(path)
        fsync_folder(path.parent)


def export_by_name(
    name: str,
    form: Format,
    out: Path | None,
    base: str | None,
    limit: float,
    events: Events,
    replace: bool = False,
) -> tuple[Path, Figures | None]:
    """Write what is called `name` in a format. Returns the path, and the gate's figures or None.

    out: the format's own default when None. base, limit: of an adapter, as in `settle export`. replace: a file
    that is there is overwritten. Raises UsageError, GateError.
    """
    exported = _exported(name, base, form, events)
    path = out or form.default_path(exported.name)
    if path.exists() and not replace:
        raise UsageError(f"{path} exists already", "choose another --out, or add --force to replace it")
    if not path.parent.is_dir():
        if out:
            raise UsageError(f"there is no folder {path.parent}", "make it first, or choose another --out")
        path.parent.mkdir(parents=True)
    events.emit(Say(text=f"reading {exported.name} …"))
    figures = export(exported, form, path, limit, _check(name, exported, form))
    if figures is not None:
        emit_gate_checks(figures, events)
    events.emit(Say(text=f"wrote {path}"))
    return path, figures


def _check(name: str, exported: ExportedModel | ExportedAdapter, form: Format) -> Check | None:
    """Return what is asked of the file in addition to every file: of a decision model, its answers."""
    run = find_run(name) if exported.gguf_keys else None
    gate = gate_of_run(run, exported.model, exported.tokenizer, form.dtype) if run else None
    return gate.run if gate else None


def _gguf_keys(run: Run, architecture: GgufLayout) -> Metadata:
    """Return the keys of the run's decision model, none where it made another one."""
    decision = run.read(f"out/{DECISION_FILE}")
    return keys_of(decision).metadata(architecture.gguf_family) if decision else {}


def _recommended(run: Run) -> Metadata:
    """Return the keys of how its answers are drawn, as in the file that the run made; none where that is gone."""
    file = run.out / f"{run.name}.gguf"
    return sampling_keys(Source(file, "gguf", run.name), read_gguf(file).metadata) if file.exists() else {}


def _exported(name: str, base: str | None, form: Format, events: Events) -> ExportedModel | ExportedAdapter:
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return _adapter_of_folder(folder, base, events)
    run = find_run(name) or Run.find(name)
    if (run.out / ADAPTER_FOLDER).is_dir():
        return _adapter_of_run(run, base, events)
    if not (run.out / HF_FOLDER).is_dir() and run.result() and (files := sorted(run.out.glob("*.gguf"))):
        fix = "copy the file, or export the model that it was made from in another format"
        raise UsageError(f"{run.name} is an exported file already: {files[0]}", fix)
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
        keys = {**_recommended(run), **_gguf_keys(run, opened.part)}
        return ExportedModel(
            run.name, model, opened.part, opened.weights, opened.tokenizer, texts, card, gguf_keys=keys
        )
    live = load(folder)
    texts = held_out_text(run, live.tokenizer, events)
    return ExportedModel(run.name, live.model, live.part, live.weights, live.tokenizer, texts, card)


def _adapter_of_run(run: Run, base: str | None, events: Events) -> ExportedAdapter:
    opened = open_pretrained(base or str((run.read("plan.json") or {})["tuning"]["base"]))
    texts = held_out_text(run, opened.tokenizer, events)
    adapter = open_adapter(run.out / ADAPTER_FOLDER).apart(opened.part)
    template, is_plain = _turns(run, opened)
    tokenizer = opened.tokenizer.with_template(template) if template else opened.tokenizer
    card = {"template": template} | ({"base": True} if is_plain else {})
    return ExportedAdapter(run.name, opened, adapter, tokenizer, texts, card, _gguf_keys(run, opened.part))


def _turns(run: Run, base: Pretrained) -> tuple[str | None, bool]:
    """Return the chat template of a tuned model where its base has another, and whether it only completes texts.

    The template is also returned where the base takes no turns. By the file that the run made.
    """
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
    return ExportedAdapter(name, opened, adapter.apart(opened.part), opened.tokenizer, list(PROSE))


@dataclass(frozen=True)
class LiveModel:
    """part: the architecture; model: in evaluation mode, fp32; weights: parameter name → tensor."""

    part: Architecture
    model: Decoder
    tokenizer: ByteBpeTokenizer

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def load(folder: Path) -> LiveModel:
    """Load the model in a folder of Hugging Face's layout. Raises FormatError when its files do not fit together."""
    if not (folder / "config.json").exists():
        raise FormatError(f"there is no config.json in {folder}", "export the model again")
    config = read_json(folder / "config.json")
    architecture = of_hf_config(config)
    model = architecture.build(0)
    tensors = architecture.unstack_experts(read_safetensors(folder).tensors)
    names = architecture.hf_names()
    parameters = dict(model.named_parameters())
    of_tensor: dict[str, list[Tensor]] = {}
    for name in names:
        of_tensor.setdefault(names[name], []).append(parameters[name])
    stray = sorted(set(tensors) ^ set(of_tensor))
    if stray:
        raise FormatError(f"{folder.name} and its config.json disagree about {stray[0]}", "export the model again")
    with torch.no_grad():
        for file_name, own in of_tensor.items():
            tensor, rows = tensors[file_name], [parameter.shape[0] for parameter in own]
            shape = (sum(rows), *own[0].shape[1:])
            if tensor.shape != shape:
                raise FormatError(
                    f"{tensor.name} has the shape {tensor.shape}, config.json says {shape}", "export the model again"
                )
            for parameter, piece in zip(own, torch.from_numpy(tensor.load()).split(rows), strict=True):
                parameter.copy_(piece)
    return LiveModel(architecture, model.eval(), ByteBpeTokenizer(folder))


def shrunk_through_gate(
    source: Pretrained,
    path: Path,
    write: Callable[[Path], object],
    held_out_texts: Sequence[str],
    effort: Effort = BRIEF,
) -> Figures:
    """Have `write` make a GGUF file, which becomes `path` only if it passes; the gate's figures.

    source: what the file was made from: its architecture, tokenizer and weights. Raises GateError, and then nothing
    lies at `path` that was not there before.
    """
    with unproven_place(path) as unproven:
        write(unproven)
        figures = shrunk_gate(source, unproven, held_out_texts, effort)
        fix = "nothing was written; this is worth a bug report"
        require(figures, path, f"{source.name} with its weights", fix)
    return figures


def shrunk_gate(
    source: Pretrained,
    path: Path,
    held_out_texts: Sequence[str],
    effort: Effort = BRIEF,
) -> Figures:
    """Return the figures of `run_gate` for a file that was made from `source`.

    The model that the file is held against is the source's architecture, tokenizer and template with the *file's own*
    weights as numbers, so llama.cpp must compute the same to within the rounding of its activations; and each tensor
    must be the source's to within what its type may round. What the rounding costs is measured, see `divergence.py`.

    Raises GateError for a file with other tensors than the source has, FormatError for one that is not sound.
    """
    file = Pretrained.open(path)
    if file.part.parameters() != source.part.parameters():
        raise GateError(
            f"{path.name} has other tensors than {source.name}", "nothing was written; this is worth a bug report"
        )
    _require_header(source, file, path.name)
    # the source's architecture, so that a header that says something else shows
    there = replace(file, part=source.part)
    # turning blocks into numbers once is quicker than at every use, where there is room for the numbers
    live = there.load(quantize=None if 4 * source.part.num_parameters < memory().available // 2 else "as-is")
    origin = Origin(source.part, source.weights, foreign=source.source.kind == "gguf", is_own=False)
    dtype = bars_of(file)
    return run_gate(Reference(live, source.tokenizer, held_out_texts), path, dtype, effort, origin=origin)


def _require_header(source: Pretrained, file: Pretrained, name: str) -> None:
    """Check that the metadata match the source file, except file-specific keys."""
    if source.source.kind != "gguf":
        return
    for key, value in source.metadata.items():
        if not key.startswith("general.") and file.metadata.get(key) != value:
            raise GateError(f"{name} does not say the same as {source.name} in {key}", "this is worth a bug report")


def bars_of(file: Pretrained) -> str:
    """Return the type whose bars a file is held to.

    The coarsest float, or `SAME_BLOCKS` as soon as a matrix is quantized. Raises FormatError when it has no matrix at
    all.
    """
    kinds = {stored.tensor.dtype for stored in file.stored.values() if len(stored.shape) > 1}
    if not kinds:
        raise FormatError(f"{file.name} holds no matrix", "it is not a whole model")
    if not all(map(is_float, kinds)):
        return SAME_BLOCKS
    return max(kinds, key=list(GGML).index).lower()
