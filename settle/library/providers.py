"""What providers of cloud models say they log, keep and train on, dated: providers.toml, or a person's own file."""

import datetime
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.files.dated_file import OLD_DAYS, age, dated_file, today

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
