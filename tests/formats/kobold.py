"""A folder for KoboldCpp, a whole export format in one file: what another package would register."""

import json
from pathlib import Path
from typing import ClassVar

from settle.formats import ModelContents, Weights
from settle.formats.gguf import Gguf, export_gguf, read_gguf


class Kobold(Gguf):
    """A GGUF and the settings to start it with."""

    suffix: ClassVar[str] = ""

    def read(self, path: Path) -> Weights:
        return read_gguf(self.gguf(path))

    def write(self, path: Path, model: ModelContents) -> Path:
        path.mkdir()
        export_gguf(model.architecture, model.weights, model.tokenizer, self.gguf(path), self.dtype, model.card)
        settings = {"model_param": "model.gguf", "contextsize": model.architecture.max_position_embeddings}
        (path / "settle.kcpps").write_text(json.dumps(settings))
        return path

    def gguf(self, path: Path) -> Path:
        return path / "model.gguf"

    def default_path(self, name: str) -> Path:
        return Path(f"{name}-kobold")
