"""What may be asked of the data. No numpy, so that a command line can be made of it at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from settle.base.settings import Settings


class DataSettings(Settings):
    """What to make of the given text."""

    held_out: float = Field(0.1, gt=0, le=0.5, description="share of the text kept for evaluation, 16 MB at most")
    held_out_from: Path | None = Field(None, description="evaluate on this file or folder instead")
    clean: bool = Field(True, description="drop and mend rows; the ledger says what and why")
    mask: Literal["none", "email", "keys", "ips", "all"] = Field("none", description="secrets to replace in the text")
    vocab_size: int | None = Field(None, ge=260, le=1_000_000, description="tokens; derived from the text if not given")
    field: str | None = Field(None, description="the column or key that holds the text, in tables and JSON")
