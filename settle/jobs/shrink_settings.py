"""What a person may ask of `settle shrink`. No torch, so that a command line can be made of it at once."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from settle.base.errors import UsageError
from settle.library.resolve import portable_name
from settle.shrink.settings import ShrinkOptions


class ShrinkSettings(ShrinkOptions):
    """What a person may ask of `settle shrink`."""

    inputs: list[str] = Field([], description="files or folders of text or examples; settle's own text if not given")
    name: str | None = Field(None, description="name of the run; from the model when not given")
    dry: bool = Field(False, description="show what would be made, with what it is predicted to lose; make nothing")

    def check(self) -> None:
        """Raises UsageError for what cannot be started."""
        if self.vocabulary and not self.inputs:
            raise UsageError("your text decides which tokens are needed", "give it: `settle shrink MODEL FILES …`")
        self.budget()
        if find_spec("llama_cpp_py_sync") is None:
            raise UsageError("shrinking needs llama-cpp-py-sync", "pip install 'settle-lm[shrink]'")

    def usual_name(self) -> str:
        """A run's name when none was given."""
        return f"{Path(self.model).expanduser().resolve().stem}-small"

    def to_recipe(self) -> dict[str, object]:
        """What recipe.toml keeps: all that was asked for, with paths that are valid from any folder."""
        recipe: dict[str, object] = self.model_dump(exclude_unset=True, exclude={"dry"}, mode="json")
        recipe |= {key: portable_name(str(recipe[key])) for key in ("model", "imatrix") if recipe.get(key)}
        texts = {"inputs": self.inputs, "calibration": self.calibration}
        return recipe | {key: absolute_paths(paths) for key, paths in texts.items() if paths}


def absolute_paths(sources: Iterable[str]) -> list[str]:
    """Paths that are valid from any folder; what is no path stays."""
    paths = {given: Path(given).expanduser().absolute() for given in sources}
    return [str(path) if path.exists() else given for given, path in paths.items()]
