"""A model where LM Studio looks for it: `~/.lmstudio/models/<publisher>/<model>/<file>.gguf`.

Layout: https://lmstudio.ai/docs/app/advanced/import-model
"""

from pathlib import Path
from typing import ClassVar

from settle.base.errors import FormatError
from settle.base.python_command import shell_line
from settle.formats import ModelContents, folder_to_write
from settle.formats.gguf import Gguf, export_contents

PUBLISHER = "settle"


class LmStudio(Gguf):
    """A folder `<publisher>/<model>` with one GGUF; LM Studio lists it as soon as it lies among its models."""

    suffix: ClassVar[str] = ""

    def write(self, path: Path, model: ModelContents) -> Path:
        # LM Studio tells a model's files apart by the type at the end of their names
        with folder_to_write(path):
            export_contents(model, path / f"{path.name}-{self.dtype.upper()}.gguf", self.dtype)
        return path

    def gguf(self, path: Path) -> Path:
        files = sorted(Path(path).glob("[!.]*.gguf"))
        if len(files) != 1:
            raise FormatError(f"{path} holds {len(files)} GGUF files, one was expected", "export the model again")
        return files[0]

    def default_path(self, name: str) -> Path:
        """Return the folder where LM Studio finds the model; under the working directory where it is not installed."""
        models = models_folder()
        return (models if models.is_dir() else Path("lmstudio-models")) / PUBLISHER / name

    def next_line(self, path: Path, name: str) -> str:
        is_found = path.absolute().is_relative_to(models_folder())
        return "lms ls" if is_found else shell_line("lms", "import", str(self.gguf(path)))


def models_folder() -> Path:
    """LM Studio's folder of models; its home may have been moved, and then a file says where to."""
    pointer = Path.home() / ".lmstudio-home-pointer"
    home = Path(pointer.read_text(encoding="utf-8").strip()) if pointer.is_file() else Path.home() / ".lmstudio"
    return home / "models"
