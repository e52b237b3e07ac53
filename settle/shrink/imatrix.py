"""How much each input of each tensor matters: llama.cpp's importance matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Importance:
    """means: tensor name in GGUF → mean square of each of its inputs, float32 (C,), or (E · C,) for experts.

    num_tokens: on how many they were measured; datasets: on what.
    """

    means: Mapping[str, np.ndarray]
    num_tokens: int = 0
    datasets: list[str] = field(default_factory=list)
