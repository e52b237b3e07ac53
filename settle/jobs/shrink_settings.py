"""What a person may ask of `settle shrink`. No torch, so that a command line can be made of it at once."""

from importlib.util import find_spec
from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.jobs.settings import JobSettings, absolute_paths, name_of
from settle.shrink.settings import ShrinkOptions


class ShrinkSettings(ShrinkOptions, JobSettings):
    """What a person may ask of `settle shrink`."""

    models: ClassVar[tuple[str, ...]] = ("model", "imatrix")

    inputs: list[str] = Field([], description="files or folders of text or examples; settle's own text if not given")
    name: str | None = Field(None, description="name of the run; from the model when not given")

    def check(self, job: str) -> None:
        if self.vocabulary and not self.inputs:
            raise UsageError("your text decides which tokens are needed", "give it: `settle shrink MODEL FILES …`")
        self.budget()
        if find_spec("llama_cpp_py_sync") is None:
            raise UsageError("shrinking needs llama-cpp-py-sync", "pip install 'settle-lm[shrink]'")

    def usual_name(self) -> str:
        return f"{name_of(self.model)}-small"

    def to_recipe(self) -> dict[str, object]:
        recipe = super().to_recipe()
        return recipe | ({"calibration": absolute_paths(self.calibration)} if self.calibration else {})
