"""Codex, OpenAI's coding agent in a terminal: a provider given on its command line, for one session.

It speaks the Responses API alone, appends /responses to the base URL, and reads the key from a variable. A value
that is no TOML is taken as a string: quotation marks would not reach it from every shell.
"""

from typing import ClassVar

from settle.base.python_command import with_variables
from settle.connect.clients import NO_KEY, QUESTION, SHORT, Client, ClientRequest, Connection

KEY_VARIABLE = "SETTLE_API_KEY"


class Codex(Client):
    """Nothing is written into config.toml; the note shows what would stand there."""

    about: ClassVar[str] = "Codex, a coding agent in a terminal"
    needs: ClassVar[int] = 32_768

    def steps(self, connection: Connection) -> str:
        provider = {"name": "settle", "base_url": connection.openai, "env_key": KEY_VARIABLE, "wire_api": "responses"}
        settings = {f"model_providers.settle.{name}": value for name, value in provider.items()}
        settings |= {"model_provider": "settle", "model": connection.model}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return with_variables({KEY_VARIABLE: connection.key or NO_KEY}, "codex", *options)

    def note(self, connection: Connection) -> str:
        return "the same settings in ~/.codex/config.toml hold for every session"

    def requests(self, connection: Connection) -> list[ClientRequest]:
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
        body = {
            "model": connection.model,
            "instructions": "You are a coding agent running in a terminal.",
            "input": [message],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "store": False,
            "stream": True,
            "max_output_tokens": SHORT,
        }
        return [ClientRequest("its agent", "/v1/responses", body, "responses", {"User-Agent": "codex_cli_rs"})]
