"""Holds the experts of a mixture fixed while types are compared, and while the loss is differenced.

Which experts a token takes is a step function of its router's chances: the smallest rounding changes it where two are
nearly as likely, and a gradient through another expert is another gradient, however right it is. So the exact
computation records its choices, a computation in another type repeats them, and the chances are compared by themselves.

Legend: N tokens, E experts, K of them chosen.
"""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import TopExperts


@dataclass
class ExpertChoice:
    """What the routers of a model chose: for each by its name and call the chances (N, E) and the experts (N, K)."""

    calls: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    deviation: float = 0.0  # relative norm of the difference of the chances of the last `repeated`

    @contextlib.contextmanager
    def recorded(self, model: Decoder) -> Iterator[None]:
        """Record what `model` chooses meanwhile, in place of what was recorded before."""
        self.calls = {name: [] for name in _routers(model)}

        def record(name: str, chances: Tensor, chosen: Tensor) -> None:
            self.calls[name].append((chances.detach().cpu(), chosen.cpu()))

        with contextlib.ExitStack() as hooks:
            for name, router in _routers(model).items():
                hooks.callback(router.register_forward_hook(lambda _, i, o, name=name: record(name, i[0], o[1])).remove)
            yield

    @contextlib.contextmanager
    def repeated(self, model: Decoder) -> Iterator[None]:
        """Let `model` take the recorded experts, call by call, with its own chances; sets `deviation`."""
        places = dict.fromkeys(self.calls, 0)
        gap = size = 0.0

        def repeat(name: str, chances: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal gap, size
            exact, chosen = self.calls[name][places[name]]
            places[name] += 1
            gap += float((chances.detach().cpu().to(exact.dtype) - exact).square().sum())
            size += float(exact.square().sum())
            chosen = chosen.to(chances.device)
            return chances.gather(1, chosen), chosen

        with contextlib.ExitStack() as hooks:
            for name, router in _routers(model).items():
                hooks.callback(router.register_forward_hook(lambda _, i, __, name=name: repeat(name, i[0])).remove)
            yield
        self.deviation = (gap / size) ** 0.5 if size else 0.0


def has_experts(model: nn.Module) -> bool:
    """Whether `model` chooses experts."""
    return bool(_routers(model))


def learns_elsewhere(name: str, alive: Collection[str]) -> bool:
    """Return whether the same tensor of another expert of its layer is among the names `alive`: no token of a small
    batch that counts may have chosen this one."""
    layer, marker, rest = name.partition(".experts.")
    tensor = rest.partition(".")[2]
    others = (other.partition(".experts.") for other in alive)
    return bool(marker) and any(there == layer and it.partition(".")[2] == tensor for there, _, it in others)


def _routers(model: nn.Module) -> dict[str, TopExperts]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TopExperts)}
