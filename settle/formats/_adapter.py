"""A low-rank adapter apart from its base model, and how it is named here, in PEFT and in llama.cpp.

Letters: r rank, I inputs and O outputs of a linear. Names are PEFT's: `base_model.model.<module>.lora_A.weight` (r, I),
`.lora_B.weight` (O, r), and for DoRA `.lora_magnitude_vector` (O,).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from settle.base.errors import FormatError
from settle.formats import to_float32

PREFIX = "base_model.model."
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
NAME = re.compile(re.escape(PREFIX) + r"(?P<module>.+)(?P<kind>\.lora_A\.weight|\.lora_B\.weight|" + MAGNITUDE + ")")


@dataclass(frozen=True)
class Adapter:
    """What training an adapter made, and what it belongs to.

    state: PEFT name → tensor (torch or numpy). A linear's weight becomes W + scale · B A, where scale is alpha / r, or
    alpha / √r with `rslora`. base: name of the model it was trained on; base_sha256: of that model's weights.
    Raises FormatError when the state is not whole pairs of one rank.
    """

    state: Mapping[str, Any]
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    base: str | None = None
    base_sha256: str | None = None
    modules: tuple[str, ...] = field(init=False)
    rank: int = field(init=False)
    dora: bool = field(init=False)

    def __post_init__(self) -> None:
        kinds: dict[str, set[str]] = {}
        for name in self.state:
            match = NAME.fullmatch(name)
            if match is None:
                raise FormatError(f"{name} is no tensor of a LoRA or DoRA adapter", "only these two kinds are known")
            kinds.setdefault(match["module"], set()).add(match["kind"])
        dora = any(MAGNITUDE in found for found in kinds.values())
        whole = {DOWN, UP, MAGNITUDE} if dora else {DOWN, UP}
        for module, found in kinds.items():
            if found != whole:
                raise FormatError(f"the adapter lacks {module}{min(whole - found)}", "save the adapter again")
            down, up = np.shape(self.state[PREFIX + module + DOWN]), np.shape(self.state[PREFIX + module + UP])
            if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
                raise FormatError(f"the adapter's pair for {module} has the shapes {down} and {up}", "save it again")
        ranks = {np.shape(self.state[PREFIX + module + DOWN])[0] for module in kinds}
        if len(ranks) != 1:
            what = "is empty" if not ranks else f"has several ranks: {sorted(ranks)}"
            raise FormatError(f"the adapter {what}", "an adapter has one rank and a pair for at least one module")
        object.__setattr__(self, "modules", tuple(kinds))
        object.__setattr__(self, "rank", ranks.pop())
        object.__setattr__(self, "dora", dora)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def pair(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """A (r, I) and B (O, r) of a module, float32."""
        return to_float32(self.state[PREFIX + module + DOWN]), to_float32(self.state[PREFIX + module + UP])

    def require_base(self, sha256: str | None, name: str) -> None:
        """Raises FormatError when the adapter says that it was trained on other weights than these."""
        if self.base_sha256 and sha256 and self.base_sha256 != sha256:
            raise FormatError(
                f"the adapter was trained on {self.base or 'a model'} with sha256 {self.base_sha256[:12]}…, "
                f"and {name} has {sha256[:12]}…",
                f"take the base it was trained on, or train it again on {name}",
            )

    def parameters(self, part: Any) -> dict[str, str]:
        """Module → the parameter of `part` that it adapts. Raises FormatError naming a module the model has not."""
        by_hf = {hf: ours for ours, hf in part.hf_names().items()}
        found = {module: by_hf.get(f"{module}.weight") for module in self.modules}
        for module, ours in found.items():
            if ours is None:
                raise FormatError(
                    f"the adapter is for {module}, which a {part.model_type} of this size does not have",
                    "take the base it was trained on",
                )
        return {module: ours for module, ours in found.items() if ours is not None}


def targets(adapter: Adapter, part: Any) -> list[str]:
    """The shortest `target_modules` that mean exactly the adapter's modules: last names where they are enough."""
    modules = {hf.removesuffix(".weight") for hf in part.hf_names().values() if hf.endswith(".weight")}
    last: dict[str, set[str]] = {}
    for module in modules:
        last.setdefault(module.rpartition(".")[2], set()).add(module)
    chosen = set(adapter.modules)
    names = {module.rpartition(".")[2] for module in chosen}
    if all(last[name] <= chosen for name in names):
        return sorted(names)
    return sorted(chosen)
