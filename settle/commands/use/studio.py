"""settle studio: the page where runs and models are watched, tried and compared."""

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.commands import Command

HOST = "127.0.0.1"


class Studio(Command):
    """Show runs, models and documents live in the browser.

    It is reached from this machine only. A one-time link lets one browser in; the terminal shows the next one when it
    has been used. Nothing is loaded from elsewhere. Ctrl-C closes the page; runs that it started continue.
    """

    port: int = Field(7389, ge=0, le=65535, description="0 takes a free one")
    no_browser: bool = Field(False, description="only show the link; do not open the browser")

    # A browser that it opens is a child of this process: a ledger would name every page that the person visits.
    @property
    def is_watched(self) -> bool:  # type: ignore[override]  # of the command as it is asked, not of all
        return self.no_browser

    def door(self) -> tuple[str, int]:
        return HOST, self.port

    def run(self, events: Events) -> int:
        try:
            from settle.studio.app import serve
        except ModuleNotFoundError as e:
            raise UsageError(f"the studio needs {e.name}", extra_command("studio")) from None
        serve(self.port, not self.no_browser, Command.parts, events)
        return 0
