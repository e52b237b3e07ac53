"""A folder that mlx-lm loads on a Mac (`mlx_lm.generate --model FOLDER`) and converts from.

mlx-lm reads Hugging Face's layout and names; what is its own is the mark in the file's metadata, by which
transformers and LM Studio tell the two apart.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from settle.base.python_command import shell_line
from settle.formats import Format, ModelContents, Weights
from settle.formats.safetensors import export_safetensors, read_safetensors


class Mlx(Format):
    """A folder: model.safetensors marked as MLX's, config.json and the tokenizer's files."""

    suffix: ClassVar[str] = ""
    for_llama_cpp: ClassVar[bool] = False
    dtype: Literal["f32", "f16", "bf16"] = Field("bf16", description="type of the tensors")

    def read(self, path: Path) -> Weights:
        return read_safetensors(path)

    def write(self, path: Path, model: ModelContents) -> Path:
        return export_safetensors(
            model.architecture, model.weights, model.tokenizer, path, self.dtype, {**model.card, "format": "mlx"}
        )

    def next_line(self, path: Path, name: str) -> str:
        return shell_line("mlx_lm.generate", "--model", str(path), "--prompt", "Hello")
