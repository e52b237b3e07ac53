"""A hub on this machine: the few addresses that the hub's own library asks for, over folders of files."""

import hashlib
import json
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path, lie_about: str = ""):
    """Yields the address of a hub whose models are `folder/owner/name`; it lies about the hash of one file."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._api(parts[2:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._file(folder / parts[0] / parts[1], "/".join(parts[4:]), with_body)
            else:
                self._refuse("EntryNotFound")

        def _api(self, parts: list[str]) -> None:
            repository = folder.joinpath(*parts[:2])
            if not repository.is_dir():
                self._refuse("RepoNotFound")
                return
            if parts[2:3] == ["revision"] and parts[3] not in ("main", COMMIT):
                self._refuse("RevisionNotFound")
                return
            files = [_described(p, repository, lie_about) for p in sorted(repository.rglob("*")) if p.is_file()]
            self._json({"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": files, "private": False})

        def _file(self, repository: Path, name: str, with_body: bool) -> None:
            path = repository / name
            if not path.is_file():
                self._refuse("EntryNotFound")
                return
            body = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _described(path: Path, repository: Path, lie_about: str) -> dict:
    sha256 = "0" * 64 if path.name == lie_about else hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    entry: dict = {"rfilename": path.relative_to(repository).as_posix(), "size": size, "blobId": sha256[:40]}
    if path.suffix in (".gguf", ".safetensors"):
        entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
    return entry
