"""The decision model as files: always whole, with the keys by which llama.cpp asks it, and through both gates."""

from collections.abc import Callable

from settle.base.event_log import Events
from settle.base.events import Say
from settle.evaluate.gate.behaviour import Figures
from settle.evaluate.gate.decision_gate import DecisionGate, ProbabilitiesApart, keys_of
from settle.evaluate.gate.export import ExportedAdapter, ExportedModel, export_run_adapter, export_run_model
from settle.evaluate.gate.gate import held_out_texts
from settle.jobs.tune_decision.stages import DecisionContext
from settle.library.catalogue import transformers_name
from settle.library.facts import PLAIN_TEXT_KEY
from settle.library.run_models import record_made
from settle.model.load_adapter import TrainedAdapter
from settle.train.live_run import adapter_of


def export(c: DecisionContext) -> None:
    """Export the decision model, an adapter merged: a file of its own cannot hold what llama.cpp needs of one."""
    if not c.is_usable:
        return
    live, base, name = c.live, c.pretrained, c.run.name
    keys = keys_of(c.keys)
    gguf_keys = keys.metadata(live.architecture.gguf_architecture)
    texts = held_out_texts(c.corpus.held_out, c.tokenizer)
    card = {"verdict": c.verdict.verdict, **c.best.model_dump(exclude_none=True)}
    if base.metadata.get(PLAIN_TEXT_KEY):
        card["base"] = True
    live.model.load_trainable(c.outcome.best)
    rows = c.corpus.rows("held_out")
    if live.whole:
        whole = ExportedModel(
            name, live.model, live.architecture, c.outcome.best, c.tokenizer, texts, card, gguf_keys=gguf_keys
        )
        gate = DecisionGate(live.model, c.decision, c.encoder, keys, rows)
        files, c.gate = in_fine_enough_type(
            lambda dtype: export_run_model(whole, c.run.out, c.events, dtype, gate.run), c.events
        )
    else:
        base_name = transformers_name(base.source) or base.name
        adapter = TrainedAdapter.of_model(live.model, adapter_of(c.tuning), base_name, base.source.sha256)
        exported = ExportedAdapter(name, base, adapter, c.tokenizer, texts, card, gguf_keys)
        gate = DecisionGate(exported.model, c.decision, c.encoder, keys, rows)
        files, c.gate = in_fine_enough_type(
            lambda dtype: export_run_adapter(exported, c.run.out, c.events, dtype, gate.run), c.events
        )
    record_made(c.run, files, base.source)
    c.add_files(files)


def in_fine_enough_type(
    write: Callable[[str], tuple[dict[str, str], Figures]], events: Events
) -> tuple[dict[str, str], Figures]:
    """Return what `write` returns for the coarsest type that keeps the probabilities.

    A small model's can move by more than the bar where its weights are only rounded to 16 bits. Raises GateError where
    no type keeps them.
    """
    try:
        return write("f16")
    except ProbabilitiesApart as e:
        events.emit(Say(text=f"{e.what}; rounding to 16 bits may be why, so it is written in f32"))
        return write("f32")
