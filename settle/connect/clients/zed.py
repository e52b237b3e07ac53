"""Zed, an editor: an OpenAI-compatible provider in its settings.json, and its key in the environment.

Zed reads the key of a provider called settle from SETTLE_API_KEY, or from what is typed into its own settings.
"""

from pathlib import Path
from typing import ClassVar

from settle.base.python_command import with_variables
from settle.connect.clients import NO_KEY, Client, ClientRequest, Connection, chat, settings_home
from settle.connect.config_files import ConfigFile, Entry, json_entry, json_file

UNKNOWN_CONTEXT = 8192


class Zed(Client):
    """Its agent and its inline assistant."""

    about: ClassVar[str] = "Zed, an editor with an agent"
    needs: ClassVar[int] = 16_384

    def files(self, connection: Connection) -> list[ConfigFile]:
        provider = _provider(connection)
        empty: Entry = {}
        return [json_file(_settings(), _with({}, provider), empty, lambda value: _with(value, provider))]

    def document_files(self, command: Entry) -> list[ConfigFile]:
        return [json_entry(_settings(), "context_servers", command)]

    def steps(self, connection: Connection) -> str:
        return with_variables({"SETTLE_API_KEY": connection.key or NO_KEY}, "zed")

    def note(self, connection: Connection) -> str:
        return "or type the key under Agent Settings → LLM Providers → settle; then choose the model in the agent panel"

    def requests(self, connection: Connection) -> list[ClientRequest]:
        system, usage = "You are a helpful coding assistant.", {"include_usage": True}
        return [chat(connection, "its agent", system, stream_options=usage)]


def _settings() -> Path:
    return settings_home() / "zed" / "settings.json"


def _provider(connection: Connection) -> Entry:
    has_tools = "tools" in connection.capabilities
    model = {
        "name": connection.model,
        "display_name": f"settle {connection.model}",
        "max_tokens": connection.context or UNKNOWN_CONTEXT,
        "capabilities": {
            "tools": has_tools,
            "images": False,
            "parallel_tool_calls": has_tools,
            "prompt_cache_key": False,
        },
    }
    return {"api_url": connection.openai, "available_models": [model]}


def _with(value: Entry, provider: Entry) -> Entry:
    """Return the settings with our provider, which replaces the one of the same name."""
    models = value.get("language_models", {})
    if not isinstance(models, dict) or not isinstance(compatible := models.get("openai_compatible", {}), dict):
        raise ValueError("language_models is no object")
    return {**value, "language_models": {**models, "openai_compatible": {**compatible, "settle": provider}}}
