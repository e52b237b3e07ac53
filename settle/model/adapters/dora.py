"""DoRA (arXiv:2402.09353): LoRA changes the direction of a row, and its length is trained by itself."""

from typing import ClassVar

from settle.model.adapters.lora import LoRA


class DoRA(LoRA):
    """Rows of W + alpha / r · B A, scaled to lengths that are trained too."""

    magnitude: ClassVar[bool] = True
