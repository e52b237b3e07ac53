"""A model of settle's own, loaded again from the folder that `export_safetensors` writes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from settle.base.errors import FormatError
from settle.base.files import read_json
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.formats.safetensors import read_safetensors
from settle.model.architectures import Architecture, of_hf_config
from settle.model.decoder import Decoder


@dataclass(frozen=True)
class LiveModel:
    """part: the architecture; model: in evaluation mode, fp32; weights: parameter name → tensor."""

    part: Architecture
    model: Decoder
    tokenizer: ByteBpeTokenizer

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def load(folder: Path) -> LiveModel:
    """The model in a folder of Hugging Face's layout. Raises FormatError when its files do not fit together."""
    if not (folder / "config.json").exists():
        raise FormatError(f"there is no config.json in {folder}", "export the model again")
    config = read_json(folder / "config.json")
    architecture = of_hf_config(config)
    model = architecture.build(0)
    tensors = read_safetensors(folder).tensors
    names = architecture.hf_names()
    parameters = dict(model.named_parameters())
    stray = sorted(set(tensors) ^ {names[name] for name in parameters})
    if stray:
        raise FormatError(f"{folder.name} and its config.json disagree about {stray[0]}", "export the model again")
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = tensors[names[name]]
            if tensor.shape != tuple(parameter.shape):
                raise FormatError(
                    f"{tensor.name} has the shape {tensor.shape}, config.json says {tuple(parameter.shape)}",
                    "export the model again",
                )
            parameter.copy_(torch.from_numpy(tensor.load()))
    return LiveModel(architecture, model.eval(), ByteBpeTokenizer(folder))
