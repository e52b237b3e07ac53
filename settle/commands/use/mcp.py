"""settle mcp: documents and verdicts for an editor or an agent, over the Model Context Protocol."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Mcp(ThreadSettings, Command):
    """Let an editor or an agent read documents and verdicts, over MCP.

    MCP is the Model Context Protocol: the program that reads starts this command and speaks on its stdin and stdout;
    `settle connect` sets it up. It can ask, search and read passages in the collections that you name, and read how a
    run ended. Any other collection is as if it were not there, and nothing is written. Answers are quotes; the program
    has its own model.
    """

    positional: ClassVar[tuple[str, ...]] = ("collections",)
    is_watched: ClassVar[bool] = False

    collections: list[str] = Field(default_factory=list, description="what may be read, as `settle index` lists it")

    def run(self, events: Events) -> int:
        try:
            from settle.server.mcp_tools import serve_tools
        except ModuleNotFoundError as e:
            raise UsageError(f"serving documents over MCP needs {e.name}", extra_command("mcp")) from None
        serve_tools(self.collections, events)
        return 0
