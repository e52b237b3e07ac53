"""LibreChat: a custom endpoint in its librechat.yaml."""

from pathlib import Path
from typing import ClassVar

from settle.connect.clients import NO_KEY, Client, ClientRequest, Connection, chat, environment, list_models
from settle.connect.config_files import ConfigFile, Entry, merge_yaml, yaml_file

HEAD: Entry = {"version": "1.3.17"}
KEYS = ["endpoints", "custom"]
AGENT = "langchainjs-openai/1.0.0"


class LibreChat(Client):
    """It reads $CONFIG_PATH, or librechat.yaml in its installation folder, which only a person knows."""

    about: ClassVar[str] = "chat for teams, in the browser"

    def files(self, connection: Connection) -> list[ConfigFile]:
        path = _path()
        return [] if path is None else [yaml_file(path, HEAD, KEYS, _entry(connection))]

    def steps(self, connection: Connection) -> str:
        if _path() is not None:
            return ""
        text = merge_yaml(None, HEAD, KEYS, _entry(connection))
        return f"# librechat.yaml, in the folder of LibreChat\n{text}"

    def note(self, connection: Connection) -> str:
        where = "" if _path() else "--write does it when run in LibreChat's folder, or with CONFIG_PATH set; "
        return f"{where}restart LibreChat; in Docker it needs `network_mode: host` to reach this machine"

    def requests(self, connection: Connection) -> list[ClientRequest]:
        headers = {"User-Agent": AGENT}
        title = chat(connection, "its titles", stream=False, headers=headers)
        usage, person = {"include_usage": True}, "65f0c0ffee0000000000cafe"
        talk = chat(connection, headers=headers, stream_options=usage, user=person)
        return [list_models(User_Agent=AGENT), talk, title]


def _path() -> Path | None:
    path = environment("CONFIG_PATH")
    if path:
        return None if "://" in str(path) or str(path).startswith(("http:", "https:")) else path
    here = Path.cwd()
    is_its_folder = any((here / name).is_file() for name in ("librechat.yaml", "librechat.example.yaml"))
    return here / "librechat.yaml" if is_its_folder else None


def _entry(connection: Connection) -> Entry:
    return {
        "name": "settle",
        "apiKey": connection.key or NO_KEY,
        "baseURL": connection.openai,
        "models": {"default": [connection.model], "fetch": True},
        "titleConvo": True,
        "titleModel": connection.model,
        "modelDisplayLabel": "settle",
    }
