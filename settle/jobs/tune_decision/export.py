"""The decision model as files: always whole, with the keys by which llama.cpp asks it, and through both gates."""

from collections.abc import Mapping

from settle.evaluate.gate.decision_gate import DecisionGate, keys_of
from settle.evaluate.gate.export import ExportedAdapter, ExportedModel, export_run_adapter, export_run_model
from settle.evaluate.gate.held_out import held_out_texts
from settle.jobs.tune_decision.stages import DecisionContext
from settle.library.catalogue import transformers_name
from settle.library.facts import PLAIN_TEXT_KEY
from settle.library.run_models import record_made
from settle.model.load_adapter import TrainedAdapter
from settle.train.live_run import adapter_of


def export(c: DecisionContext) -> None:
    """An adapter is merged: a file of its own could not hold what llama.cpp needs of a decision model."""
    if not c.is_usable:
        return
    live, base, name = c.live, c.pretrained, c.run.name
    best, decision = c.figures["best"], c.figures["decision"]
    assert isinstance(best, dict) and isinstance(decision, Mapping)
    keys = keys_of(decision)
    gguf_keys = keys.metadata(live.architecture.gguf_architecture)
    texts = held_out_texts(c.corpus.held_out, c.tokenizer)
    card = {"verdict": c.figures["verdict"], **{key: value for key, value in best.items() if value is not None}}
    if base.metadata.get(PLAIN_TEXT_KEY):
        card["base"] = True
    live.model.load_trainable(c.outcome.best)
    rows = c.corpus.rows("held_out")
    if live.whole:
        whole = ExportedModel(
            name, live.model, live.architecture, c.outcome.best, c.tokenizer, texts, card, gguf_keys=gguf_keys
        )
        gate = DecisionGate(live.model, c.decision, c.encoder, keys, rows)
        files, figures = export_run_model(whole, c.run.out, c.events, check=gate.run)
    else:
        base_name = transformers_name(base.source) or base.name
        adapter = TrainedAdapter.of_model(live.model, adapter_of(c.tuning), base_name, base.source.sha256)
        exported = ExportedAdapter(name, base, adapter, c.tokenizer, texts, card, gguf_keys)
        gate = DecisionGate(exported.model, c.decision, c.encoder, keys, rows)
        files, figures = export_run_adapter(exported, c.run.out, c.events, gate.run)
    record_made(c.run, files, base.source)
    c.add_files(files)
    c.figures["gate"] = figures
