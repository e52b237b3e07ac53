"""`settle models update FILE`: newer models, devices, prices or terms, from a file or a wheel of known hash."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.files.dated_file import age, check_pin, install, read_update
from settle.library.catalogue import CatalogueFile, catalogue_file
from settle.library.prices import Prices, prices
from settle.library.providers import Providers
from settle.machine.hardware import Hardware, hardware

# What a file is, by a table that only it has.
KINDS: Mapping[str, tuple[str, type[BaseModel]]] = {
    "known": ("catalogue", CatalogueFile),
    "devices": ("hardware", Hardware),
    "api": ("prices", Prices),
    "provider": ("providers", Providers),
}


def update_data(file: str, sha256: str | None, events: Events) -> None:
    """Check the file, its hash and every row, then keep it. Raises UsageError, DataError; the old file stays then."""
    path = Path(file)
    text = read_update(path)
    check_pin(path, sha256)
    try:
        tables = tomllib.loads(text.decode("utf-8"))
    except ValueError as e:
        raise DataError(f"{path.name} is no TOML: {e}", "get it again; nothing was changed") from None
    kind = next((kind for key, kind in KINDS.items() if key in tables), None)
    if kind is None:
        raise DataError(f"{path.name} is no catalogue and no table of devices, prices or providers", "check the file")
    name, model = kind
    try:
        model.model_validate(tables)
    except ValidationError as e:
        first = e.errors()[0]
        where = ", ".join((path.name, *_named(tables, first["loc"])))
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {message}", "get it again; nothing was changed") from None
    place = install(name, text)
    catalogue_file.cache_clear()
    hardware.cache_clear()
    prices.cache_clear()
    date = tables.get("known_date") or tables["date"]
    events.emit(Say(text=f"{name} of {date}, {age(date)}: {place}"))
    events.emit(ResultReady(result={"updated": name, "date": str(date), "path": str(place)}))


def _named(tables: object, place: tuple[str | int, ...]) -> list[str]:
    """Where in a file, as one word with dots or none: a row by its name where it has one, not by its number."""
    words = []
    for key in place:
        if isinstance(tables, dict):
            tables = tables.get(key)
        elif isinstance(tables, list) and isinstance(key, int):
            tables = tables[key]
        words.append(str(tables["name"] if isinstance(tables, dict) and "name" in tables else key))
    return [".".join(words)] if words else []
