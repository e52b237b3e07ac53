"""What others measured of a model's quality, told beside what fits: by source, because two sources do not compare."""

import datetime
from collections.abc import Iterable, Sequence
from itertools import groupby

from settle.library.catalogue import Quality
from settle.plan.fit.model_shapes import NamedShape

CAVEAT = "numbers of different sources do not compare; `settle pick` measures models on your own prompts"


def published_lines(models: Sequence[NamedShape]) -> list[str]:
    """One line for each source of each model, then what they are worth; none where nothing is known."""
    lines = [
        f"{model.name}, published: {_values(numbers)} ({kind}, {date}{', old' if is_old else ''}: {source})"
        for model in models
        for (kind, date, is_old, source), numbers in groupby(model.published, _origin)
    ]
    return [*lines, CAVEAT] if lines else []


def published_json(models: Sequence[NamedShape]) -> list[dict[str, object]]:
    """Every number as a row, with the model's name and whether it is old."""
    return [
        {"model": model.name, **number.model_dump(mode="json"), "old": number.is_old}
        for model in models
        for number in model.published
    ]


def _origin(number: Quality) -> tuple[str, datetime.date, bool, str]:
    return number.kind, number.date, number.is_old, number.source


def _values(numbers: Iterable[Quality]) -> str:
    return "; ".join(f"{number.task} {number.value:g}" for number in numbers)
