"""A run without forecast, proof, gate and comparison: what the doctor trains to see what one setting changes."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from settle.base.errors import RunError
from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.settings import resolve
from settle.base.stop_signals import Stopping
from settle.evaluate.gate.export import ADAPTER_FOLDER, ExportedAdapter, ExportedModel
from settle.formats import AdapterContents
from settle.formats.gguf import Gguf
from settle.formats.lora_gguf import LoraGguf
from settle.jobs.job import INTERRUPTED, find_job, follow, sweep
from settle.jobs.training_stages import TrainingContext, build, earlier_session, loop
from settle.jobs.tuning_stages import TuningContext
from settle.library.pretrained import open_pretrained
from settle.library.run_models import models_of, record_made
from settle.model.load_adapter import TrainedAdapter, open_adapter
from settle.train.live_run import adapter_of

PREPARING = ("base", "data", "plan")  # stages that are the job's own


Stage = Callable[[TrainingContext], None]


def short_run(command: str, recipe: Mapping[str, object], run: Run, before_loop: Stage = lambda context: None) -> None:
    """Train what `settle COMMAND` would by this recipe into the folder of `run`, and export its best weights unchecked.

    They are in 16 bits, or an adapter as it is. A run that was stopped is resumed; one that is done is left as it is.
    before_loop: called when all is ready to train. Raises SettleError, and KeyboardInterrupt when it is stopped.
    """
    if not models_of(run):
        run.path.mkdir(parents=True, exist_ok=True)
        context = _followed(command, recipe, run, (build, _begun, before_loop, loop, _export))
        if context.exit_code == INTERRUPTED:
            raise KeyboardInterrupt


def planned_run(command: str, recipe: Mapping[str, object], run: Run) -> TrainingContext:
    """Return the plan and the data of a run, with its base open; nothing is built. Raises SettleError."""
    return _followed(command, recipe, run, ())


def exported_again(run: Run, base: Path, path: Path) -> Path:
    """Write the adapter that a run keeps to `path`, as llama.cpp reads it. Raises SettleError."""
    opened, adapter = open_pretrained(base), open_adapter(run.out / ADAPTER_FOLDER)
    contents = AdapterContents(opened.part, adapter, opened.tokenizer, opened.source.path, {"name": run.name})
    return LoraGguf().write_adapter(path, contents)


def _followed(command: str, recipe: Mapping[str, object], run: Run, stages: Sequence[Stage]) -> TrainingContext:
    """Follow the run's own stages up to its plan, and then `stages`."""
    job = find_job(command)
    if not issubclass(job.context, TrainingContext):
        raise RunError(f"{command} is not a run that trains", "name a run of `settle train` or `settle tune`")
    with run.lock(), Stopping() as stopping, contextlib.closing(Events()) as events:
        sweep(run)
        own = tuple(stage for stage in job.stages if stage.__name__ in PREPARING)
        asked = resolve(job.settings, [("recipe", recipe)])
        record = run.read("plan.json")
        make: type[TrainingContext] = job.context
        context = make(run, asked.value, events, stopping, origin=asked.origin, record=record)  # type: ignore[arg-type]
        follow(replace(job, stages=(earlier_session, *own, *stages)), context)  # type: ignore[arg-type]  # one that trains
        return context


def _begun(c: TrainingContext) -> None:
    """Write plan.json: from here on it can be resumed."""
    c.spending.start(c.plan.device, None)
    if c.record is None:
        c.record = {**c.plan.to_json(), "corpus": c.corpus.fingerprint}
        write_json(c.run.path / "plan.json", c.record)
    c.events.move_to(c.run.events)


def _export(c: TrainingContext) -> None:
    """Export the best weights, as a file that llama.cpp reads."""
    if c.exit_code is not None:
        return
    live, tokenizer, weights = c.live, c.live.tokenizer, c.outcome.best
    if not isinstance(c, TuningContext) or live.whole:
        path = c.run.out / f"{c.run.name}.gguf"
        Gguf().write(path, ExportedModel(c.run.name, live.model, live.architecture, weights, tokenizer, ()).contents)
        record_made(c.run, {"gguf": str(path)})
        return
    base = c.base
    live.model.load_trainable(weights)
    adapter = TrainedAdapter.of_model(live.model, adapter_of(c.tuning), base.name, base.source.sha256)
    exported = ExportedAdapter(c.run.name, base, adapter, c.tokenizer, ())
    path = c.run.out / f"{c.run.name}-lora.gguf"
    if exported.served_over_base:
        card = {"name": c.run.name, "template": c.tokenizer.chat_template}
        contents = AdapterContents(base.part, adapter, c.tokenizer, base.source.path, card)
        record_made(c.run, {"lora_gguf": str(LoraGguf().write_adapter(path, contents))}, base.source)
    else:
        path = path.with_name(f"{c.run.name}.gguf")
        record_made(c.run, {"gguf": str(Gguf().write(path, exported.merged(1.0).contents))})
