"""The models that a run made: out/models.json, written when they are exported."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from settle.base.errors import RunError, UsageError
from settle.base.files import read_json, write_json
from settle.base.run import Run
from settle.library.reference import Proposal
from settle.model.source import Source

VERSION = 1  # of the record
RECORD = "models.json"

MadeKind = Literal["model", "adapter", "draft"]


class MadeModel(BaseModel):
    """One file in a run's out/.

    path: relative to out/, or absolute. base, base_name: of an adapter, the file that it is served over and that
    model's name. draft_tokens, draft_sure: of a draft, how it proposes best (see `settle.infer.child_process.Draft`);
    speed_up: how many times as fast its model was with it when it was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: MadeKind
    path: str
    base: str | None = None
    base_name: str | None = None
    draft_tokens: int | None = None
    draft_sure: float | None = None
    speed_up: float | None = None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    models: tuple[MadeModel, ...]


def record_made(run: Run, files: Mapping[str, str], base: Source | None = None) -> None:
    """Record what was exported into the run's out/.

    files: by kind, as `settle.evaluate.gate.export` returns them; "gguf" is a whole model, "lora_gguf" an adapter that
    is served over `base`.
    """
    models = [MadeModel(kind="model", path=Path(files["gguf"]).name)] if "gguf" in files else []
    if "lora_gguf" in files:
        assert base is not None, "an adapter has a base"
        path, below = Path(files["lora_gguf"]).name, str(base.path.resolve())
        models.append(MadeModel(kind="adapter", path=path, base=below, base_name=base.name))
    _add(run, models)


def record_draft(run: Run, path: Path, proposal: Proposal) -> None:
    """Record a draft in the run's out/, and how it proposes best."""
    tokens, sure, speed_up = proposal
    _add(run, [MadeModel(kind="draft", path=path.name, draft_tokens=tokens, draft_sure=sure, speed_up=speed_up)])


def _add(run: Run, models: Sequence[MadeModel]) -> None:
    """Add entries; one for the same file is replaced."""
    earlier = _recorded(run) or ()
    paths = {model.path for model in models}
    kept = (*(model for model in earlier if model.path not in paths), *models)
    write_json(run.out / RECORD, _Record(version=1, models=kept).model_dump(exclude_none=True))


def models_of(run: Run) -> tuple[MadeModel, ...]:
    """Return what the run made, as far as the files are there, with absolute paths.

    Raises RunError for a damaged record, or one of a newer version.
    """
    made = _recorded(run)
    if made is None:
        made = tuple(_by_endings(run))
    placed = (model.model_copy(update={"path": str(run.out / model.path)}) for model in made)
    return tuple(model for model in placed if Path(model.path).is_file())


def missing_files(run: Run) -> dict[Path, str]:
    """Return the exported models that are gone, each with the command that writes it again.

    Raises RunError as `models_of`.
    """
    again = {
        "model": f"settle export {run.name} --out {{}}",
        "adapter": f"settle export {run.name} --to lora-gguf --out {{}}",
        "draft": f"settle runs show {run.name}",  # which names its command and its settings
    }
    places = {run.out / made.path: again[made.kind] for made in _recorded(run) or ()}
    return {path: command.format(path) for path, command in places.items() if not path.is_file()}


def require_exported(run: Run) -> Path:
    """Return the whole model that the run made, as a GGUF file. Raises UsageError where there is none, saying why."""
    made = models_of(run)
    path = next((Path(model.path) for model in made if model.kind == "model"), None)
    if path is not None:
        return path
    if any(model.kind == "adapter" for model in made):
        raise UsageError(
            f"{run.name} is an adapter and no whole model",
            f"`settle export {run.name} --to safetensors` merges it, and makes a folder that can be given here",
        )
    for path, command in missing_files(run).items():
        raise UsageError(f"{path.name}, which {run.name} exported, is no longer in {path.parent}", f"`{command}`")
    result = run.result()
    if result is not None and result.exit_code == 1:
        raise UsageError(f"{run.name} made no model: {result.why}", f"`settle runs show {run.name}` says more")
    resumes = run.status == "interrupted"
    fix = f"`settle resume {run.name}` finishes it" if resumes else f"`settle export {run.name}`"
    raise UsageError(f"{run.name} has no exported model yet", fix)


def _recorded(run: Run) -> tuple[MadeModel, ...] | None:
    path = run.out / RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    version = record.get("version") if isinstance(record, dict) else None
    if type(version) is int and version > VERSION:
        raise RunError(f"{path} has version {version}, and this settle reads up to {VERSION}", "update settle")
    try:
        return _Record.model_validate(record).models
    except ValidationError:
        raise RunError(
            f"{path} is damaged", f"remove it: the files in {run.out} are then found by their names"
        ) from None


def _by_endings(run: Run) -> Iterator[MadeModel]:
    """Infer file kinds from suffixes, for runs without a record."""
    first = [*run.earlier, run.name][0]  # files keep the name that they were made under
    adapter, draft = (run.out / f"{first}-{ending}.gguf" for ending in ("lora", "draft"))
    files = [path for path in run.out.glob("[!.]*.gguf") if path not in (adapter, draft)]
    if adapter.is_file():
        plan = run.read("plan.json")
        tuning = (plan.get("tuning") if isinstance(plan, dict) else None) or {}
        base, base_name = tuning.get("base"), tuning.get("base_name")
        yield MadeModel(kind="adapter", path=adapter.name, base=base, base_name=base_name)
    for path in sorted(files, key=lambda path: (path.stem != first, path.name))[:1]:
        yield MadeModel(kind="model", path=path.name)
    if draft.is_file():
        result = run.read("result.json")
        pair = result.get("pair") if isinstance(result, dict) else None
        if pair:
            yield MadeModel(
                kind="draft", path=draft.name, draft_tokens=pair["draft_tokens"], draft_sure=pair["draft_sure"],
                speed_up=pair["speed_up"],
            )  # fmt: skip
