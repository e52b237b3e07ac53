"""From what a person names to what the doctor looks at."""

from settle.base.errors import SettleError, UsageError
from settle.base.run import Run
from settle.doctor.subject import Running, Subject
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.resolve import find_run, is_collection, resolve_gguf


def find_subject(name: str | None, running: Running) -> Subject:
    """What `name` stands for; this machine where there is none. Raises UsageError when there is nothing of that name,
    and what `resolve` raises."""
    if name is None:
        return Subject("machine", "this machine", running=running)
    if is_collection(name):
        return Subject("collection", name, running=running)
    run = find_run(name)
    if run is not None:
        return of_run(run, name, running)
    return of_model(resolve_gguf(name), name, running)


def of_run(run: Run, name: str, running: Running) -> Subject:
    """A run, with the model that it made where it made one that can be loaded."""
    try:
        model = resolve_gguf(f"run:{run.name}")
    except SettleError:
        model = None
    return Subject("run", name, run=run, model=model, base=_base(model), running=running)


def of_model(model: ModelRef, name: str, running: Running) -> Subject:
    """A model by name or a file. Raises FormatError for a file that is not sound."""
    if model.weights.suffix != ".gguf":
        raise UsageError(f"{name} is not GGUF", "name a model of the store, or a .gguf file")
    read_facts(model.weights)  # a file that is not sound is said once, and no check looks at it
    return Subject("model", name, model=model, base=_base(model), running=running)


def _base(model: ModelRef | None) -> ModelRef | None:
    return model.base if model is not None and model.kind == "adapter" else None
