"""Dated prices: of rented devices, of electricity, and of tokens from APIs. prices.toml, or a person's own file."""

import datetime
import difflib
import functools
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from settle.base.errors import DataError, UsageError
from settle.base.files.dated_file import OLD_DAYS, dated_file, today
from settle.base.statistics import FORECAST_LEVEL, Interval

SHIPPED = Path(__file__).with_name("prices.toml")
# An hour of a device that the table lacks, by its bfloat16 rate: 2 to 6 dollars a PFLOP/s, as H100 to B200 are offered.
RENT_PER_FLOPS = Interval(3.0e-15, 1.6e-15, 5.5e-15, FORECAST_LEVEL)


class Price(BaseModel):
    """From the cheapest usual offer to the dearest, in dollars, with the day that it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(ge=0)
    usual: float = Field(ge=0)
    high: float = Field(ge=0)
    source: str = Field(min_length=1)
    as_of: datetime.date

    @model_validator(mode="after")
    def _ordered(self) -> "Price":
        if not self.low <= self.usual <= self.high:
            raise ValueError("low, usual and high are not in this order")
        return self

    @property
    def whence(self) -> str:
        """Its source and day, and a mark where it is old."""
        return _whence(self.source, self.as_of)

    @property
    def interval(self) -> Interval:
        return Interval(self.usual, self.low, self.high, FORECAST_LEVEL)


class ApiPrice(BaseModel):
    """Dollars for a million tokens; cached: of a prompt's part that the vendor has seen before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    vendor: str
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)


class _Api(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    as_of: datetime.date
    models: tuple[ApiPrice, ...]

    @property
    def whence(self) -> str:
        """As of a `Price`."""
        return _whence(self.source, self.as_of)


class Prices(BaseModel):
    """The whole file. Raises pydantic's ValidationError for a row that cannot be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    electricity: Price
    rent: dict[str, Price]
    api: _Api

    def api_price(self, name: str) -> ApiPrice:
        """Return the price of an API's model. Raises UsageError with the nearest names."""
        known = {price.id.lower(): price for price in self.api.models}
        key = name.lower().rpartition("/")[2].replace(" ", "-")
        if key in known:
            return known[key]
        near = difflib.get_close_matches(key, known, n=4, cutoff=0.4) or sorted(
            k for k in known if k.startswith(key[:3])
        )
        fix = f"nearest: {', '.join(near[:4])}" if near else f"{len(known)} models have a price"
        raise UsageError(f"no price is known for {name!r}", f"{fix}; or give it: --api-price 3,15")


def _whence(source: str, as_of: datetime.date) -> str:
    mark = ", out of date" if (today() - as_of).days > OLD_DAYS else ""
    return f"{source}, {as_of}{mark}"


@functools.cache
def prices() -> Prices:
    """Read the user's update, or the table that comes with settle. Raises DataError for a broken file."""
    return read_prices(dated_file("prices", SHIPPED))


def read_prices(path: Path) -> Prices:
    """Read a table of prices. Raises OSError, and DataError with the row that is wrong, also for a future date."""
    try:
        table = Prices.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        where = (
            ".".join(map(str, e.errors()[0]["loc"])) + ": " + e.errors()[0]["msg"]
            if isinstance(e, ValidationError)
            else e
        )
        raise DataError(f"{path.name} is no table of prices: {where}", "fix that row, or delete the file") from None
    dates = [table.date, table.electricity.as_of, table.api.as_of, *(row.as_of for row in table.rent.values())]
    if path != SHIPPED and max(dates) > today() + datetime.timedelta(days=1):
        raise DataError(f"{path.name} is dated {max(dates)}, in the future", "check the file, or this computer's clock")
    return table
