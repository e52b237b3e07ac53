"""The one rule by which a name becomes a model.

- `./notes`, `~/notes`, anything with a folder in it or with the ending .gguf or .safetensors is a path.
- `run:notes` is what the run made, `store:notes` the model in the store, `smollm2:notes` the adapter `notes` over
  `smollm2`, `docs@smollm2` the collection of documents `docs` that `smollm2` answers from.
- `notes` alone is a file or a model's folder of that name here, what the run `notes` made, or the model `notes` in the
  store. A name that means several different models is refused, and the error shows them.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from settle.base.errors import SettleError, UsageError
from settle.base.files import home
from settle.base.run import NAME, Run, present_names
from settle.base.visible import visible_name
from settle.library.catalogue import catalogue
from settle.library.reference import ModelRef, Proposal
from settle.library.run_models import MadeModel, models_of, require_exported
from settle.library.store import StoredModel, all_models, find_model, linked_model
from settle.model.source import Source

PATH_ENDINGS = (".gguf", ".safetensors")
DATA_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")  # often given in the place of the model
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.gguf)(?<!\.safetensors)")  # owner/name
T = TypeVar("T")


def resolve(name: str | Path) -> ModelRef:
    """Return what a name or a path stands for.

    Raises UsageError when there is no such model, when its files are gone, and when the name means several; RunError
    for a damaged record; FormatError for a folder without a model.
    """
    text = str(name)
    if not text:
        raise UsageError("no model is named", "`settle models` lists those there are")
    if isinstance(name, Path) or is_path(text):
        return _at_path(Path(text).expanduser(), text)
    place, colon, rest = text.partition(":")
    if colon and place == "run":
        return _of_run(Run.find(rest))
    if colon and place == "store":
        stored = find_model(rest)
        if stored is None:
            raise UsageError(f"there is no model {shown(rest)} in the store", f"`settle pull {rest}` gets one")
        return ModelRef(stored.name, "model", stored.source)
    collection, at, model = text.partition("@")
    if at and is_collection(collection):
        return collection_ref(collection, resolve(model))
    meaning = _only_meaning(text)
    if isinstance(meaning, SettleError):
        raise meaning
    return meaning or _by_id(text)


def resolve_whole(name: str | Path) -> ModelRef:
    """`resolve` for who needs all weights. Raises UsageError for an adapter and for a collection."""
    ref = resolve(name)
    if ref.kind == "adapter":
        raise UsageError(
            f"{ref.name} is an adapter and no whole model",
            f"`settle export {ref.name} --to safetensors` merges it, and makes a folder that can be given here",
        )
    return _require_model(ref)


def resolve_gguf(name: str | Path) -> ModelRef:
    """Resolve for llama.cpp: the file is GGUF, and an adapter may be over it.

    A model of the store in Hugging Face's layout is converted at its first use. Raises UsageError for a folder that is
    not in the store.
    """
    ref = _require_model(resolve(name))
    if ref.source.kind == "gguf":
        return ref
    stored = linked_model(ref.path)
    if stored is None:
        raise UsageError(
            f"{shown(str(name))} is not GGUF, which llama.cpp reads", f"`settle pull {name}`, and then use its name"
        )
    if not stored.gguf.exists():
        from settle.library.convert import convert_stored

        convert_stored(stored)
    return replace(ref, source=Source(stored.gguf, "gguf", stored.name, origin=stored.origin, license=stored.license))


def find_run(name: str) -> Run | None:
    """Return the run that a name stands for, whatever it made; None when it stands for something else, or nothing.

    Raises UsageError for a name that means several models.
    """
    place, _, rest = name.partition(":")
    if is_path(name):
        return next((run for run in Run.all() if run.path == Path(name).expanduser()), None)
    if place in ("run", "store") and rest:
        return Run.find(rest) if place == "run" else None
    _only_meaning(name)
    return Run.named(name)


def resolve_draft(name: str) -> ModelRef:
    """Return the draft that a run of `settle distill --draft` made, or any whole model that is small enough to be one.

    Raises UsageError.
    """
    run = find_run(name)
    draft = next((made for made in models_of(run) if made.kind == "draft"), None) if run else None
    if run and draft and draft.draft_tokens is not None and draft.draft_sure is not None:
        proposal = Proposal(draft.draft_tokens, draft.draft_sure, draft.speed_up or 1.0)
        return ModelRef(run.name, "draft", _made_source(run, draft), proposal=proposal)
    ref = resolve_gguf(name)
    if ref.adapter:
        raise UsageError(f"{name} is an adapter and no draft", "`settle distill MODEL INPUTS --draft` makes one")
    return ref


def all_refs() -> list[ModelRef]:
    """Every model of the store and of the runs, and every adapter whose base is there, each under a name of its own."""
    stored = [ModelRef(model.name, "model", model.source) for model in all_models()]
    made = [ref for run in Run.all() for ref in _refs_of(run)]
    twice = {ref.name for ref in stored} & {ref.name for ref in made if ref.kind == "model"}
    stored = [replace(ref, name=f"store:{ref.name}") if ref.name in twice else ref for ref in stored]
    wholes = [ref for ref in made if ref.kind == "model"]
    wholes = [replace(ref, name=f"run:{ref.name}") if ref.name in twice else ref for ref in wholes]
    names = {ref.path.resolve(): ref.name for ref in [*wholes, *stored]}
    adapters = [
        # the base goes by its name on this machine
        replace(ref, base=replace(ref.base, name=names.get(ref.base.path.resolve(), ref.base.name)))
        for ref in made
        if ref.kind == "adapter" and ref.base
    ]
    return [*stored, *{ref.id: ref for ref in [*wholes, *adapters]}.values()]


def is_path(text: str) -> bool:
    """Whether a name can only be a path."""
    separators = [os.sep, *filter(None, [os.altsep])]
    return text.endswith(PATH_ENDINGS) or text.startswith(("~", ".")) or any(sign in text for sign in separators)


def is_model(path: Path) -> bool:
    """Whether a path leads to a model: a file, or a folder in Hugging Face's layout."""
    try:
        return path.is_file() or (path / "config.json").is_file()
    except (OSError, ValueError):  # too long, or no name that a disk knows
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_collection(name: str) -> bool:
    """Whether `settle index` made a collection of that name."""
    return bool(NAME.fullmatch(name)) and (home() / "collections" / name).is_dir()


def collection_ref(name: str, model: ModelRef) -> ModelRef:
    """Return the documents of a collection, answered from by `model`."""
    return ModelRef(name, "collection", Source(home() / "collections" / name, "gguf", name), base=model)


def portable_name(what: str) -> str:
    """Name a model or file so that it is found from any folder: a path becomes absolute, a name stays."""
    path = Path(what).expanduser()
    return str(path.absolute()) if is_model(path) else what


def shown(text: str) -> str:
    """Quote a name, also one with bytes that are no text."""
    return repr(text.encode(errors="surrogateescape").decode(errors="backslashreplace"))


def _require_model(ref: ModelRef) -> ModelRef:
    if ref.kind == "collection" and ref.base:
        raise UsageError(f"{ref.id} is a collection of documents", f"`settle ask {ref.name}`, or give {ref.base.id}")
    return ref


def _only_meaning(text: str) -> ModelRef | SettleError | None:
    """Return what a bare name stands for, or what is wrong with that; None when there is nothing of that name.

    Raises UsageError when there are several.
    """
    candidates = list(_candidates(text))
    if len(candidates) > 1:
        meanings = ", ".join(f"{spelling} ({what})" for spelling, what, _ in candidates)
        fix = " or ".join(f"`{spelling}`" for spelling, _, _ in candidates)
        raise UsageError(f"{shown(text)} means several models: {meanings}", f"say which: {fix}")
    return candidates[0][2] if candidates else None


def _candidates(text: str) -> Iterator[tuple[str, str, ModelRef | SettleError]]:
    """(how to spell it, what it is, the model or what is wrong with it), each of another file."""
    found: list[tuple[str, str, ModelRef | SettleError]] = []
    run, path = Run.named(text), Path(text)
    if run is not None and any(made.kind != "draft" for made in models_of(run)):
        found.append((f"run:{text}", "made by a run", _or_error(lambda: _of_run(run))))
    stored = _or_error(lambda: find_model(text))
    if isinstance(stored, StoredModel):
        found.append((f"store:{text}", "in the store", ModelRef(stored.name, "model", stored.source)))
    elif stored is not None:
        found.append((f"store:{text}", "in the store", stored))
    if is_model(path):
        found.append((f"./{text}", "here", _at_path(path, text)))
    files: set[Path] = set()
    for spelling, what, ref in found:
        file = ref.path.resolve() if isinstance(ref, ModelRef) else None
        if file is None or file not in files:
            yield spelling, what, ref
        files |= {file} if file else set()


def _or_error(find: Callable[[], T]) -> T | SettleError:
    try:
        return find()
    except SettleError as e:
        return e


def _at_path(path: Path, text: str) -> ModelRef:
    run = next((run for run in Run.all() if run.path == path), None)
    if run is not None:
        return _of_run(run)
    if path.is_file() and path.suffix.lower() in DATA_ENDINGS:
        raise UsageError(
            f"{path.name} holds data and is not a model",
            f"the model comes first, then the files: `settle tune smollm2 {path.name}`",
        )
    if not is_model(path) and not _is_folder(path):
        raise _unknown(text)
    source, linked = Source.at(path), linked_model(path)
    return ModelRef(source.name, "model", linked.source if linked else source)


def _by_id(text: str) -> ModelRef:
    run = Run.named(text)
    if run is not None:
        return _of_run(run)  # which says what is missing
    found = next((ref for ref in all_refs() if ref.id in (text, present_names(text))), None)
    if found is None:
        if _is_folder(Path(text)):
            return _at_path(Path(text), text)
        raise _unknown(text)
    return found


def _of_run(run: Run) -> ModelRef:
    """Return the whole model or the adapter that a run made. Raises UsageError where there is none, saying why."""
    usable = [made for made in models_of(run) if made.kind == "model" or (made.kind == "adapter" and made.base)]
    if not usable:
        require_exported(run)
    ref = _made_ref(run, usable[0])
    if ref.base and not ref.base.path.is_file():
        raise UsageError(f"{run.name} is an adapter over {ref.base.path}, which is gone", "put that file back")
    return ref


def _refs_of(run: Run) -> Iterator[ModelRef]:
    """Yield the models and adapters of a run that can be used; a damaged run has none."""
    made = _or_error(lambda: models_of(run))
    for model in () if isinstance(made, SettleError) else made:
        if model.kind == "model" or (model.kind == "adapter" and model.base and Path(model.base).is_file()):
            yield _made_ref(run, model)


def _made_ref(run: Run, made: MadeModel) -> ModelRef:
    source = _made_source(run, made)
    if made.kind == "model" or not made.base:
        return ModelRef(run.name, "model", source, aliases=(run.path.name, *run.earlier))
    path = Path(made.base)
    name = made.base_name or visible_name(path.stem)
    base = ModelRef(name, "model", Source(path, "gguf", name))
    return ModelRef(run.name, "adapter", source, base, aliases=(run.name, run.path.name, *run.earlier))


def _made_source(run: Run, made: MadeModel) -> Source:
    origin = f"adapter of run {run.name}" if made.kind == "adapter" else f"run {run.name}"
    return Source(Path(made.path), "gguf", run.name, origin=origin)


def _unknown(text: str) -> UsageError:
    if is_path(text) and not _HUB_ID.fullmatch(text):
        return UsageError(f"there is no model {shown(text)}: there is no file of that name", "check the path")
    names = list(dict.fromkeys(ref.name for ref in all_refs()))
    near = difflib.get_close_matches(text, [*names, *catalogue()], n=1, cutoff=0.75)
    if text in catalogue():
        fix = f"`settle pull {text}` gets it"
    elif near:
        fix = f"did you mean {near[0]!r}?" + ("" if near[0] in names else f" `settle pull {near[0]}` gets it")
    elif _HUB_ID.fullmatch(text) or not names:
        fix = f"`settle pull {text}` gets one"
    else:
        fix = f"known: {', '.join(names)}; `settle pull {text}` gets one, and `settle pull` lists what there is"
    return UsageError(f"there is no model {shown(text)}", fix)
