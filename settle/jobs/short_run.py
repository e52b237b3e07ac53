"""A run without forecast, proof, gate and comparison: what the doctor and the lab train to see what a change does."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from settle.base.errors import RunError
from settle.base.event_log import Events, Listener
from settle.base.files import JsonObject, write_json
from settle.base.run import Run
from settle.base.settings import resolve
from settle.base.stop_signals import Stopping
from settle.evaluate.gate.export import ADAPTER_FOLDER, ExportedAdapter, ExportedModel
from settle.formats import AdapterContents
from settle.formats.gguf import Gguf
from settle.formats.lora_gguf import LoraGguf
from settle.jobs.job import INTERRUPTED, find_job, follow, sweep
from settle.jobs.training_stages import UNUSABLE, TrainingContext, build, earlier_session, loop
from settle.jobs.tuning_stages import TuningContext
from settle.library.pretrained import open_pretrained
from settle.library.run_models import models_of, record_made
from settle.model.load_adapter import TrainedAdapter, open_adapter
from settle.train.evaluation import HeldOut, evaluate
from settle.train.live_run import adapter_of, blocks
from settle.train.verdict import verdict

PREPARING = ("base", "data", "plan")  # stages that are the job's own
SHAKEN = 0.01  # share by which first weights are changed at random, where a pair is to differ by nothing that matters

Side = Literal["selection", "held_out"]


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


@dataclass(frozen=True)
class Measurement:
    """What a run came to.

    Attributes:
        loss: bits per byte of the side that was read, or nats per target, by the best weights; infinite without any.
        failed: why there are none, or "".
    """

    loss: float
    steps: int
    seconds: float
    failed: str = ""


def measured_run(
    command: str, recipe: JsonObject, run: Run, side: Side, is_shaken: bool, listener: Listener
) -> Measurement:
    """Train as `short_run` does, and measure the best weights on one side of the data; the other one is not read.

    is_shaken: the first weights are changed by SHAKEN. listener: is told what the run emits.
    """
    found: list[Measurement] = []
    run.path.mkdir(parents=True, exist_ok=True)
    stages = (build, *((_shake,) if is_shaken else ()), _begun, loop, lambda c: found.append(_measured(c, side)))
    context = _followed(command, recipe, run, stages, listener)
    if context.exit_code == INTERRUPTED:
        raise KeyboardInterrupt
    return found[0]


def _shake(c: TrainingContext) -> None:
    random = torch.Generator().manual_seed(c.plan.loop.seed)
    with torch.no_grad():
        for weight in c.live.model.trainable().values():
            weight.mul_(1 + SHAKEN * torch.randn(weight.shape, generator=random).to(weight))


def _measured(c: TrainingContext, side: Side) -> Measurement:
    state, seconds = c.outcome.state, c.spending.total
    ended = verdict(state, c.plan.loop, 1.0)
    if ended.verdict in UNUSABLE:
        return Measurement(math.inf, state.step, seconds, f"{ended.verdict}: {ended.why}")
    store = c.corpus.held_out if side == "held_out" else c.corpus.selection
    c.live.model.load_trainable(c.outcome.best)
    held_out = HeldOut(blocks(c.plan, store, store.num_tokens), c.live.tokenizer.byte_length)
    figures = evaluate(c.live.model, c.live.objective, held_out, state.best_step, 0)
    loss = figures.loss if figures.bits_per_byte is None else figures.bits_per_byte
    return Measurement(loss, state.step, seconds)


def planned_run(command: str, recipe: Mapping[str, object], run: Run) -> TrainingContext:
    """Return the plan and the data of a run, with its base open; nothing is built. Raises SettleError."""
    return _followed(command, recipe, run, ())


def exported_again(run: Run, base: Path, path: Path) -> Path:
    """Write the adapter that a run keeps to `path`, as llama.cpp reads it. Raises SettleError."""
    opened = open_pretrained(base)
    adapter = open_adapter(run.out / ADAPTER_FOLDER).apart(opened.part)
    contents = AdapterContents(opened.part, adapter, opened.tokenizer, opened.source.path, {"name": run.name})
    return LoraGguf().write_adapter(path, contents)


def _followed(
    command: str, recipe: Mapping[str, object], run: Run, stages: Sequence[Stage], *listeners: Listener
) -> TrainingContext:
    """Follow the run's own stages up to its plan, and then `stages`."""
    job = find_job(command)
    if not issubclass(job.context, TrainingContext):
        raise RunError(f"{command} is not a run that trains", "name a run of `settle train` or `settle tune`")
    with run.lock(), Stopping() as stopping, contextlib.closing(Events(listeners=listeners)) as events:
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
