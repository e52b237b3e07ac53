"""A run without forecast, proof, gate and comparison: what the doctor trains to see what one setting changes."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from settle.base.errors import RunError
from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.settings import resolve
from settle.base.stop_signals import Stopping
from settle.evaluate.gate.export import ExportedAdapter, ExportedModel
from settle.formats import AdapterContents
from settle.formats.gguf import Gguf
from settle.formats.lora_gguf import LoraGguf
from settle.jobs.job import INTERRUPTED, find_job, follow, sweep
from settle.jobs.training_stages import TrainingContext, build, earlier_session, loop
from settle.jobs.tuning_stages import TuningContext
from settle.library.run_models import models_of, record_made
from settle.model.load_adapter import TrainedAdapter
from settle.train.live_run import adapter_of

PREPARING = ("base", "data", "plan")  # stages that are the job's own


def short_run(command: str, recipe: Mapping[str, object], run: Run) -> None:
    """Trains what `settle COMMAND` would by this recipe into the folder of `run`, and exports its best weights
    unchecked, in 16 bits, or an adapter as it is. One that was stopped is resumed; one that is done is left as it is.
    Raises SettleError, and KeyboardInterrupt when it is stopped."""
    job = find_job(command)
    if job is None or not issubclass(job.context, TrainingContext):
        raise RunError(f"{command} is not a run that trains", "name a run of `settle train` or `settle tune`")
    run.path.mkdir(parents=True, exist_ok=True)
    with run.lock(), Stopping() as stopping, contextlib.closing(Events()) as events:
        sweep(run)
        if models_of(run):
            return
        own = tuple(stage for stage in job.stages if stage.__name__ in PREPARING)
        stages = (earlier_session, *own, build, _begun, loop, _export)
        asked = resolve(job.settings, [("recipe", recipe)])
        record = run.read("plan.json")
        context = job.context(run, asked.value, asked.origin, events, stopping, record)  # type: ignore[arg-type]
        follow(replace(job, stages=stages), context)  # type: ignore[arg-type]  # of a job that trains
        if context.exit_code == INTERRUPTED:
            raise KeyboardInterrupt


def _begun(c: TrainingContext) -> None:
    """plan.json: from here on it can be resumed."""
    c.spending.start(c.plan.device, None)
    if c.record is None:
        c.record = {**c.plan.to_json(), "corpus": c.corpus.fingerprint}
        write_json(c.run.path / "plan.json", c.record)
    c.events.move_to(c.run.events)


def _export(c: TrainingContext) -> None:
    """The best weights, as a file that llama.cpp reads."""
    if c.exit_code is not None:
        return
    live, tokenizer, weights = c.live, c.live.tokenizer, c.outcome.best
    if not isinstance(c, TuningContext) or live.whole:
        path = c.run.out / f"{c.run.name}.gguf"
        Gguf().write(path, ExportedModel(c.run.name, live.model, live.architecture, weights, tokenizer, ()).contents)
        record_made(c.run, {"gguf": str(path)})
        return
    base = c.pretrained
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
