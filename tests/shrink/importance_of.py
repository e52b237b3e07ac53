"""The importance matrix alone, without the rest of what `measurements.measure` takes on the way."""

from collections.abc import Sequence

import numpy as np
import torch

from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.shrink.activations.importance import Inputs, observed, packed
from settle.shrink.types.imatrix import Importance


@torch.no_grad()
def importance_of(
    model: Decoder,
    part: Architecture,
    windows: Sequence[np.ndarray],
    dataset: str = "",
) -> Importance:
    """Run the model over `windows` (each (L,) ids) and take the mean square of every matrix's inputs."""
    inputs = Inputs(model)
    with observed(model, inputs.see):
        for window in windows:
            inputs.see_head(model(*packed([window], model.device)))
    return inputs.importance(part, dataset)
