"""Which models of the catalogue can be tuned: those whose text model is of a family that is known."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady
from settle.library.catalogue import KnownModel, catalogue_file
from settle.model.families import families, family_of

SMALL, NEW = 5e9, 2026  # parameters at most; year of release
COLUMNS = ("family", "models", "up to 5 B", "of 2026", "can be tuned", "loaded as")


class Share(NamedTuple):
    """How many of some models can be tuned, and the families that most of the others are of, with their numbers."""

    tunable: int
    models: int
    missing: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.tunable} of {self.models} = {100 * self.tunable / max(self.models, 1):.0f} %"


class FamilyCount(NamedTuple):
    """How many models of the catalogue a family has. loaded_as: the family of its text model, "" for an unknown one."""

    family: str
    models: int
    small: int
    small_and_new: int
    tunable: int
    loaded_as: str


def loaded_as(family: str) -> str:
    """Return the family that loads a `model_type`, that of its text model where it is multimodal; "" if none does."""
    part = family_of(family)
    return part.model_type if part else ""


def can_be_tuned(model: KnownModel) -> bool:
    """Return whether a model's family is known, and has experts where the model has some; latent attention is not."""
    name = loaded_as(model.family)
    if not name or model.shape.latent:
        return False
    layers = families()[name].TINY.options().layers
    return not model.shape.experts or any(layer.experts is not None for layer in layers)


def is_small(model: KnownModel) -> bool:
    return model.shape.parameters <= SMALL


def is_small_and_new(model: KnownModel) -> bool:
    return is_small(model) and model.released is not None and model.released.year == NEW


WHICH: dict[str, Callable[[KnownModel], bool]] = {
    "up to 5 B, of 2026": is_small_and_new,
    "up to 5 B": is_small,
    "all": lambda model: True,
}


def tunable_shares() -> dict[str, Share]:
    """Return the share of the catalogue's models that can be tuned, for each set of `WHICH`."""
    return {name: _share(filter(belongs, catalogue_file().known)) for name, belongs in WHICH.items()}


def _share(models: Iterable[KnownModel]) -> Share:
    found = list(models)
    missing = Counter(model.family for model in found if not can_be_tuned(model))
    return Share(len(found) - missing.total(), len(found), tuple(missing.most_common()))


def family_counts() -> list[FamilyCount]:
    """Return every family of the catalogue, the largest first."""
    by_family: dict[str, list[KnownModel]] = {}
    for model in catalogue_file().known:
        by_family.setdefault(model.family, []).append(model)
    found = [
        FamilyCount(
            family,
            len(models),
            sum(map(is_small, models)),
            sum(map(is_small_and_new, models)),
            sum(map(can_be_tuned, models)),
            loaded_as(family),
        )
        for family, models in by_family.items()
    ]
    return sorted(found, key=lambda row: (-row.models, row.family))


def list_families(events: Events) -> None:
    """Show the families of the catalogue, and which share of its models can be tuned."""
    shares, rows = tunable_shares(), family_counts()
    missing = ", ".join(f"{family} ({count})" for family, count in shares["up to 5 B"].missing[:5])
    note = "can be tuned: " + "; ".join(f"{name}: {share}" for name, share in shares.items())
    if missing:
        note += f"; most of the others up to 5 B are of {missing}"
    events.emit(Listing(columns=COLUMNS, rows=[tuple(row) for row in rows], note=note))
    result = {name: {"tunable": share.tunable, "models": share.models} for name, share in shares.items()}
    events.emit(ResultReady(result={"shares": result, "families": [row._asdict() for row in rows]}))
