"""`settle models update FILE`: newer models, devices, prices or terms, from a file or a wheel of known hash.

Also what providers of cloud models say they log, keep and train on, dated: providers.toml, or the user's own file.
"""

import datetime
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.files.dated_file import OLD_DAYS, age, check_pin, dated_file, install, read_update, today
from settle.library.catalogue import CatalogueFile, catalogue_file
from settle.library.prices import Prices, prices
from settle.machine.described_machine import Hardware, hardware

SHIPPED = Path(__file__).with_name("providers.toml")
COLUMNS = ("provider", "plan", "trains on it", "keeps", "read", "link")


class Terms(BaseModel):
    """One plan of one provider.

    read: the day its page was read; verified: whether all of it was read at the link; note: what was not, and who says
    so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    plan: str = Field(min_length=1)
    training: str = Field(min_length=1)
    logged: str = Field(min_length=1)
    retention: str = Field(min_length=1)
    exceptions: str = ""
    link: str = Field(pattern=r"^https://[^\s]+$")
    read: datetime.date
    verified: bool
    note: str = ""


class Providers(BaseModel):
    """The whole file. Raises pydantic's ValidationError for a row that cannot be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    provider: tuple[Terms, ...] = Field(min_length=1)


def providers() -> Providers:
    """Read the user's update, or the table that comes with settle. Raises DataError for a broken file."""
    path = dated_file("providers", SHIPPED)
    try:
        return Providers.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise DataError(f"{path.name} is no table of providers: {e}", "fix that row, or delete the file") from None


def show_providers(events: Events) -> None:
    """Every plan, with the age of what is said of it."""
    table = providers()
    rows = [
        (t.name, t.plan, t.training, t.retention, f"{age(t.read)}{'' if t.verified else ', unverified'}", t.link)
        for t in table.provider
    ]
    events.emit(Listing(columns=COLUMNS, rows=rows))
    for terms in table.provider:
        more = [f"logged: {terms.logged}", terms.exceptions, f"unverified: {terms.note}" if terms.note else ""]
        events.emit(Say(text=f"{terms.name}, {terms.plan}: {'; '.join(part for part in more if part)}"))
    oldest = min(terms.read for terms in table.provider)
    note = f"table of {table.date}, {age(table.date)}; its oldest page: {age(oldest)}"
    events.emit(Say(text=f"{note}. Terms change: what counts is the page, and your contract."))
    old = sum((today() - terms.read).days > OLD_DAYS for terms in table.provider)
    if old:
        text = (
            f"{old} of {len(table.provider)} pages were read more than {OLD_DAYS} days ago: read those pages themselves"
        )
        events.emit(Warn(text=text))
    events.emit(ResultReady(result={"age": age(table.date), **table.model_dump(mode="json")}))


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
