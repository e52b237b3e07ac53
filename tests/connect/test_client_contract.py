"""Every client of the registry keeps the contract: what it shows, writes and sends."""

import json

import pytest

from settle.connect.clients import Client, Connection, cli_name

CONNECTION = Connection(
    "http://127.0.0.1:7388", "sk-settle-0123456789abcdef", "tiny", 4096, ("completion", "tools", "insert"), "vectors"
)


@pytest.fixture(autouse=True)
def person(tmp_path, monkeypatch):
    """A person's home, without any client's settings."""
    for name in ("HOME", "APPDATA", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("CONFIG_PATH", str(tmp_path / "librechat.yaml"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=Client.part_names())
def client(request) -> Client:
    return Client.make(request.param, {})


def test_it_says_what_it_is_and_needs(client):
    assert client.about and not client.about.endswith(".") and client.needs >= 0
    assert cli_name(cli_name(client.part_name())) == client.part_name()


def test_it_shows_how_it_is_set_up(client):
    shown = "".join(file.part for file in client.files(CONNECTION)) + client.steps(CONNECTION)
    assert "7388" in shown and CONNECTION.key in shown and CONNECTION.model in shown
    assert isinstance(client.note(CONNECTION), str)
    assert all("://" in origin for origin in client.origins(CONNECTION))


def test_its_files_are_written_once(client, tmp_path):
    files = client.files(CONNECTION)
    assert files or client.steps(CONNECTION), "a client without a file of its own is set up by steps"
    for file in files:
        text = file.merged(None)
        assert file.path.is_relative_to(tmp_path) and CONNECTION.model in text
        again = file.merged(text)
        assert again.count(CONNECTION.key) == text.count(CONNECTION.key)


def test_its_requests_can_be_sent(client):
    requests = client.requests(CONNECTION)
    assert requests
    for request in requests:
        assert request.what and request.path.startswith("/") and request.verb in ("GET", "POST", "OPTIONS")
        assert json.loads(json.dumps(request.body)) == request.body
        assert all(isinstance(value, str) for value in request.headers.values())
