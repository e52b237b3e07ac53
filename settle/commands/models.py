"""The models that can be served, and what is known of each."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, Progress, ResultReady, Warn
from settle.commands import Command
from settle.library.store import StoredModel, all_models, stamp_of

if TYPE_CHECKING:
    from settle.server.models.model_catalogue import ModelCatalogue
    from settle.server.models.model_entry import ModelEntry

COLUMNS = ("name", "size", "type", "parameters", "context", "template", "tools", "fits here", "tokens/s", "what")


class Models(Command):
    """List the models that can be served: of the store, of the runs, and the adapters over them.

    `settle models show NAME` tells everything of one. --measure runs those named, or all that write, and keeps how fast
    they are here: tokens read and written in a second.
    """

    positional: ClassVar[tuple[str, ...]] = ("names",)

    names: list[str] = Field(default_factory=list, description="which ones; `show NAME` for everything of one")
    measure: bool = Field(False, description="measure tokens per second, once for each file")

    def run(self, events: Events) -> int:
        try:
            from settle.server.models.model_catalogue import ModelCatalogue
            from settle.server.models.model_info import describe
        except ModuleNotFoundError as e:
            raise UsageError(f"serving needs {e.name}", "pip install 'settle-lm[serve]'") from None
        catalogue = ModelCatalogue()
        if self.names[:1] == ["show"]:
            if len(self.names) != 2:
                raise UsageError("which model is there to show?", "`settle models show NAME`")
            _show(events, catalogue, _found(catalogue, self.names[1]))
            return 0
        entries = [_found(catalogue, name) for name in self.names] or catalogue.entries()
        failed = self._measure(events, entries) if self.measure else []
        told = [describe(entry) for entry in entries]
        note = "`settle serve` serves them; `settle models show NAME` tells more"
        hint = note if told else "no models yet; get one: `settle pull smollm2`"
        events.emit(Listing(columns=COLUMNS, rows=[_row(model) for model in told], note=hint))
        for model in told:
            model["template"] = bool(model.get("template"))
        events.emit(ResultReady(result={"models": told, "failed": failed}))
        return 1 if failed else 0

    def _measure(self, events: Events, entries: "list[ModelEntry]") -> list[dict[str, str]]:
        """What could not be measured, and why."""
        from settle.server.errors import ApiError
        from settle.server.models.model_entry import make_file
        from settle.server.models.model_info import describe, measure_speed

        failed = []
        todo = [entry for entry in entries if self.names or _is_measured_unasked(describe(entry))]
        for done, entry in enumerate(todo):
            events.emit(Progress(what="measuring", done=done, total=len(todo), unit="models"))
            try:
                make_file(entry)
                measure_speed(entry)
            except (SettleError, ApiError) as e:
                why = e.what.splitlines()[0] if isinstance(e, SettleError) else e.message
                failed.append({"name": entry.id, "why": why})
                events.emit(Warn(text=f"{entry.id} is not measured: {why}"))
        return failed


def _is_measured_unasked(model: dict[str, Any]) -> bool:
    """An adapter is as fast as its base; what is broken, too large, or not converted yet is not tried unasked."""
    return not model["adapter"] and model.get("kind") == "generate" and model["fits"] == "yes"


def _found(catalogue: "ModelCatalogue", name: str) -> "ModelEntry":
    from settle.server.errors import ApiError

    try:
        return catalogue.find(name)
    except ApiError:
        known = ", ".join(entry.id for entry in catalogue.entries())
        raise UsageError(f"there is no model {name!r}", f"known: {known}" if known else "`settle pull NAME`") from None


def _row(model: dict[str, Any]) -> list[Any]:
    """One line of the list; what is not known stays empty."""
    if model["broken"]:
        return [model["name"], *[""] * 8, f"broken: {model['broken']}"]
    if model["unconverted"]:
        return [model["name"], *[""] * 8, "converted to GGUF when it is first used"]
    kinds = {"embed": "embeddings", "rerank": "reranker", "generate": ""}
    return [
        model["name"],
        {"value": model["bytes"], "unit": "bytes"},
        model["quantization"],
        {"value": model["parameters"], "unit": "count"},
        {"value": model["context"], "unit": "count"},
        "✓" if model["template"] else "–",
        model["tools"],
        model["fits"],
        _speed(model),
        f"adapter over {model['base']}" if model["adapter"] else kinds[model["kind"]],
    ]


def _speed(model: dict[str, Any]) -> str:
    speed = model["tokens_per_second"]
    return f"{speed['prompt']:,.0f} read, {speed['written']:,.0f} written" if speed else ""


def _show(events: Events, catalogue: "ModelCatalogue", entry: "ModelEntry") -> None:
    from settle.server.models.model_info import describe

    told = describe(entry)
    stored = next((m for m in all_models() if m.name == entry.id), None)
    told |= {"license": stored.license if stored else "", "aliases": list(entry.aliases)}
    told["sha256"] = _sha256(entry.adapter or entry.path, stored)
    told["adapters"] = [e.id for e in catalogue.entries() if e.adapter and not entry.adapter and e.path == entry.path]
    events.emit(Listing(title=entry.id, columns=("", ""), rows=_rows(told)))
    if told.get("template"):
        events.emit(AnswerText(text=told["template"].rstrip("\n") + "\n"))
    events.emit(ResultReady(result={"model": told}))


def _rows(told: dict[str, Any]) -> list[list[Any]]:
    rows = [
        ["file", told["path"]],
        ["adapter", told["adapter"]],
        ["over", told["base"]],
        ["broken", told["broken"]],
        ["sha256", told["sha256"]],
        ["from", told["origin"]],
        ["license", told["license"]],
        ["also called", ", ".join(told["aliases"])],
        ["adapters over it", ", ".join(told["adapters"])],
    ]
    if told["unconverted"]:
        rows.append(["", "converted to GGUF when it is first used"])
    if "kind" in told:
        rows += [
            ["size", {"value": told["bytes"], "unit": "bytes"}],
            ["type", told["quantization"]],
            ["architecture", told["architecture"]],
            ["parameters", {"value": told["parameters"], "unit": "count"}],
            ["context", {"value": told["context"], "unit": "tokens"}],
            ["memory it needs", {"value": told["needs"], "unit": "bytes"}],
            ["fits here", told["fits"]],
            ["tools", told["tools"]],
            ["tokens/s", _speed(told) or "`settle models --measure` measures it"],
            ["chat template", "as follows" if told["template"] else "none: it goes on with a text, and takes no turns"],
        ]
    return [row for row in rows if row[1]]


def _sha256(path: Path, stored: StoredModel | None) -> str:
    """As the store knows it, while the file is the same; else of the file."""
    if stored and stored.path.exists() and stored.stamp == stamp_of(stored.path):
        return stored.sha256
    if not path.is_file():
        return ""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
