"""What a finished run hands over: weights, a GGUF that passed the gate, and how to load it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from settle.evaluate.gate import export_through_gate
from settle.formats.safetensors import export_safetensors


def hand_over(
    model: Any,
    architecture: Any,
    weights: Mapping[str, Any],
    tokenizer: Any,
    out: Path,
    name: str,
    held_out_texts: Sequence[str],
    metadata: Mapping[str, Any],
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write `out/hf` (safetensors) and `out/<name>.gguf`; the files by kind and the gate's figures.

    `model` is left holding `weights`. Raises GateError, and then there is no GGUF.
    """
    model.load_state_dict(weights)
    folder = export_safetensors(architecture, weights, tokenizer, out / "hf", "f32", metadata)
    gguf = out / f"{name}.gguf"
    gate = export_through_gate(
        model, architecture, weights, tokenizer, gguf, held_out_texts, dtype="f16", metadata=metadata
    )
    return {"safetensors": str(folder), "gguf": str(gguf)}, gate
