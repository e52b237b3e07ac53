"""Claude Code, Anthropic's coding agent in a terminal: variables of its environment, for one session.

It appends /v1/messages to the base URL. Nothing is written into its settings, which hold for every session.
"""

from typing import ClassVar

from settle.base.python_command import with_variables
from settle.connect.clients import NO_KEY, QUESTION, SHORT, Client, ClientRequest, Connection


class ClaudeCode(Client):
    """Its three kinds of models are all the one that is served."""

    about: ClassVar[str] = "Claude Code, a coding agent in a terminal"
    needs: ClassVar[int] = 32_768

    def steps(self, connection: Connection) -> str:
        kinds = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL",
                 "ANTHROPIC_DEFAULT_HAIKU_MODEL")  # fmt: skip
        values = {"ANTHROPIC_BASE_URL": connection.address, "ANTHROPIC_AUTH_TOKEN": connection.key or NO_KEY}
        values |= dict.fromkeys(kinds, connection.model)
        return with_variables(values, "claude")

    def note(self, connection: Connection) -> str:
        return "/status in Claude Code shows the address; without these variables it is as before"

    def requests(self, connection: Connection) -> list[ClientRequest]:
        system = {"type": "text", "text": "You are an interactive CLI tool.", "cache_control": {"type": "ephemeral"}}
        body = {
            "model": connection.model,
            "max_tokens": SHORT,
            "system": [system],
            "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            "stream": True,
        }
        headers = {"anthropic-version": "2023-06-01", "User-Agent": "claude-cli"}
        return [ClientRequest("its agent", "/v1/messages?beta=true", body, "messages", headers)]
