"""Page Assist, the browser extension: set up in its own settings, and let in by its origin."""

from typing import ClassVar

from settle.connect.clients import NO_KEY, Client, ClientRequest, Connection, chat, embed, list_models

CHROME = "chrome-extension://jfgfiigpkhlkbnfnbobbkinehhfdhndo"  # the same for everyone who has it from the store


class PageAssist(Client):
    """It has no file that others can write: the browser keeps the settings of an extension."""

    about: ClassVar[str] = "browser extension: chat beside web pages"

    def steps(self, connection: Connection) -> str:
        return (
            "In Page Assist: Settings → OpenAI Compatible API → Add Provider → Custom\n"
            "  Provider name  settle\n"
            f"  Base URL       {_by_name(connection.openai)}\n"
            f"  API key        {connection.key or NO_KEY}\n"
            f"then fetch the models, choose {connection.model}, and save.\n"
        )

    def note(self, connection: Connection) -> str:
        return (
            "--write lets the extension in from then on. Firefox gives it an origin of its own in every browser: "
            "about:debugging → This Firefox → Page Assist → Internal UUID, then --origin moz-extension://UUID. "
            "Where Page Assist still says 403, its Automatic Ollama CORS Fix hides its origin: turn that off in "
            "Ollama Settings → Advance, or write localhost in one address and 127.0.0.1 in the other"
        )

    def origins(self, connection: Connection) -> frozenset[str]:
        return frozenset({connection.origin or CHROME})

    def requests(self, connection: Connection) -> list[ClientRequest]:
        origin = connection.origin or CHROME
        preflight = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        return [
            ClientRequest("its preflight request", "/v1/chat/completions", None, "preflight", preflight, "OPTIONS"),
            list_models(Origin=origin),
            chat(connection, headers={"Origin": origin}, stream_options={"include_usage": True}),
            *embed(connection, "its search in pages"),
        ]


def _by_name(url: str) -> str:
    """Return the server's address by a name.

    Page Assist makes the browser rewrite the origin of requests to the host of its Ollama, by default 127.0.0.1; the
    same server under another name avoids that."""
    return url.replace("//127.0.0.1:", "//localhost:", 1)
