"""DoRA (arXiv:2402.09353): LoRA changes the direction of a row, and its length is trained by itself."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from settle.model.adapters.lora import LoRA


class DoRA(LoRA):
    """Rows of W + alpha / r · B A, scaled to lengths that are trained too."""

    ENDINGS: ClassVar[tuple[str, ...]] = (*LoRA.ENDINGS, ".lora_magnitude_vector")
    magnitude: ClassVar[bool] = True

    def lora_pairs(self, tensors: Mapping[str, np.ndarray]) -> None:
        """llama.cpp has none: magnitudes scale whole rows of the weights."""
