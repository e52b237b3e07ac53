"""An adapter from a file, put beside the linears of the base it was trained on."""

from typing import TYPE_CHECKING

import torch

from settle.formats._adapter import Adapter
from settle.model.adapters import load
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA

if TYPE_CHECKING:
    from settle.model.decoder import Decoder
    from settle.model.pretrained import Pretrained


def attach(model: "Decoder", adapter: Adapter) -> None:
    """Freeze `model` and put the adapter beside its linears, whoever trained it. Raises UsageError for a module that
    the model has not, FormatError for shapes that do not fit."""
    settings = {"rank": adapter.rank, "alpha": adapter.alpha, "rslora": adapter.rslora, "targets": [*adapter.modules]}
    method = (DoRA if adapter.dora else LoRA).model_validate(settings)
    method.apply(model)
    load(model, {name: torch.as_tensor(tensor) for name, tensor in adapter.state.items()})


def adapted(base: "Pretrained", adapter: Adapter) -> "Decoder":
    """The base with an adapter, in fp32 and in evaluation mode, its own quantized blocks kept as they are.

    Raises FormatError when the adapter says that it was trained on other weights.
    """
    if adapter.base_sha256:
        adapter.require_base(base.source.sha256, base.name)
    adapter.parameters(base.part)
    model = base.load(quantize="as-is" if base.source.kind == "gguf" else None)
    attach(model, adapter)
    return model.eval()
