"""What a finished run gives away: the files in out/, made only if the gate is passed."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from settle.base.event_log import Events
from settle.base.events import GateCheck
from settle.base.run import write_atomic
from settle.evaluate.gate.diagnose import Origin
from settle.evaluate.gate.gate import Merged, adapter_through_gate, export_through_gate
from settle.formats.ollama import modelfile
from settle.formats.peft import export_peft
from settle.formats.safetensors import export_safetensors
from settle.model.adapters import Merged as MergedWeights
from settle.model.load_adapter import TrainedAdapter, adapted

HF_FOLDER, ADAPTER_FOLDER = "hf", "adapter"


def hand_over(
    model: Any,
    architecture: Any,
    weights: Mapping[str, Any],
    tokenizer: Any,
    out: Path,
    name: str,
    held_out_texts: Sequence[str],
    metadata: Mapping[str, Any],
    events: Events,
    dtype: str = "f16",
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write `out`/NAME.gguf, `out`/hf/ (safetensors, for transformers) and `out`/Modelfile.

    weights: parameter name → tensor, which `model` is left holding; held_out_texts: what it was not trained on;
    metadata: as in `export_gguf`, with "base": True for a model that continues plain text. Returns the files by kind
    and the gate's figures. Raises GateError, and then nothing is in `out` that was not there before.
    """
    model.load_trainable(weights)
    metadata = {"name": name, **metadata}
    file, folder = out / f"{name}.gguf", out / HF_FOLDER
    beside = out / f".{HF_FOLDER}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        export_safetensors(architecture, weights, tokenizer, beside, "f32", metadata)
        gate = export_through_gate(model, architecture, weights, tokenizer, file, held_out_texts, dtype, metadata)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    base = bool(metadata.get("base"))
    write_atomic(out / "Modelfile", modelfile(f"./{file.name}", tokenizer, architecture.max_position_embeddings, base))
    tell(gate, events)
    return {"gguf": str(file), "safetensors": str(folder), "ollama": str(out / "Modelfile")}, gate


def tell(figures: Mapping[str, Any], events: Events) -> None:
    """The gate's figures as events, one a check."""
    details = {
        "rendered prompts": f"{figures['prompts_equal']} equal byte for byte",
        "token ids": f"{figures['texts_equal']} texts equal",
        "distributions": f"KL {figures['kl']:.1e} nats per token over {figures['positions']} positions",
        "greedy answers": f"{figures['greedy_tokens_equal']} of {figures['greedy_tokens']} tokens equal",
    }
    merge = figures.get("merge")
    if merge:
        kept = figures["adapter_kept"]
        details["merge"] = (
            f"into a base of {merge['base_type']}, written as {figures['dtype']}: costs {merge['kl']:.1e} nats per "
            f"token, and {kept:.0%} of the adapter's change is in the file"
        )
    for check, detail in details.items():
        events.emit(GateCheck(check=check, passed=True, detail=detail))


def hand_over_adapter(
    base: Any,
    adapter: TrainedAdapter,
    tokenizer: Any,
    out: Path,
    name: str,
    held_out_texts: Sequence[str],
    metadata: Mapping[str, Any],
    events: Events,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write `out`/adapter/ (for peft); over a GGUF base `out`/NAME-lora.gguf, over another one the merged
    `out`/NAME.gguf; and `out`/Modelfile.

    base: `Pretrained`; metadata: as in `export_gguf`, and "template" as in `export_lora`. Where llama.cpp cannot serve
    the adapter beside a base, the merged file is written in any case. Returns and raises as `hand_over`.
    """
    part, metadata = base.part, {"name": name, **metadata}
    over_base = base.source.kind == "gguf" and adapter.lora is not None
    live = adapted(base, adapter)
    file = out / (f"{name}-lora.gguf" if over_base else f"{name}.gguf")
    if over_base:
        origin = Origin(part, base.weights, adapter=adapter)
        gate = adapter_through_gate(live, origin, tokenizer, file, base.source.path, held_out_texts, "f32", metadata)
    else:
        merged = Merged(base.weights, max(base.kinds, key=base.kinds.__getitem__))
        metadata.pop("template", None)  # the tokenizer brings it
        gate = export_through_gate(
            live, part, MergedWeights(live), tokenizer, file, held_out_texts, "f16", metadata, merged=merged
        )
    folder = out / ADAPTER_FOLDER
    export_peft(part, adapter, folder)
    tokenizer.save(folder)
    context, plain = part.max_position_embeddings, bool(metadata.get("base"))
    source, beside = (str(base.source.path.resolve()), f"./{file.name}") if over_base else (f"./{file.name}", None)
    write_atomic(out / "Modelfile", modelfile(source, tokenizer, context, plain, beside))
    tell(gate, events)
    files = {"lora_gguf" if over_base else "gguf": str(file), "adapter": str(folder)}
    return files | {"ollama": str(out / "Modelfile")}, gate
