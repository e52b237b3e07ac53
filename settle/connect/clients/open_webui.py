"""Open WebUI: set up by environment variables at its first start, by its settings afterwards."""

from typing import ClassVar

from settle.base.python_command import with_variables
from settle.connect.clients import NO_KEY, Client, ClientRequest, Connection, chat, embed, list_models

AGENT = "Python/3.12 aiohttp/3.13"


class OpenWebUI(Client):
    """Its database keeps the settings of its first start."""

    about: ClassVar[str] = "chat and documents in the browser"

    def steps(self, connection: Connection) -> str:
        variables = {
            "OPENAI_API_BASE_URL": connection.openai,
            "OPENAI_API_KEY": connection.key or NO_KEY,
            "ENABLE_OLLAMA_API": "false",
            "DEFAULT_MODELS": connection.model,
        }
        if connection.embedder:
            variables |= {
                "RAG_EMBEDDING_ENGINE": "openai",
                "RAG_EMBEDDING_MODEL": connection.embedder,
                "RAG_OPENAI_API_BASE_URL": connection.openai,
                "RAG_OPENAI_API_KEY": connection.key or NO_KEY,
            }
        return with_variables(variables, "open-webui", "serve")

    def note(self, connection: Connection) -> str:
        return (
            "after its first start its database wins: Admin Panel → Settings → Connections → OpenAI API, or "
            "ENABLE_PERSISTENT_CONFIG=False; in Docker it needs --network=host to reach this machine"
        )

    def requests(self, connection: Connection) -> list[ClientRequest]:
        headers = {"User-Agent": AGENT}
        return [
            list_models(User_Agent=AGENT),
            chat(connection, headers=headers),
            chat(connection, "its titles and tags", stream=False, headers=headers),
            *embed(connection, "its search in documents"),
        ]
