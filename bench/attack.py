"""Attacks on a running server: what gets in, what breaks it, and whether it answers afterwards.

    python bench/attack.py MODEL.gguf [--examples 200]

`settle serve` runs in a process of its own with one model called m. schemathesis walks through every operation of its
own /openapi.json, with data that fits and data that does not; then come attacks made by hand. An attack got in when the
answer is not the refusal that it must be. Server errors are answers from 500 on (501 says that something is not there),
and connections that ended without one. After every attack a real chat must be answered. Exit code 1 when anything
got in or broke. Needs schemathesis.
"""

import argparse
import contextlib
import http.client
import json
import shutil
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import schemathesis
from clients import Server, serving
from hypothesis import HealthCheck, Phase, given, settings

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict")
# changes of the store, which would take the model away from what follows
CHANGES = ("/api/delete", "/api/create", "/api/copy")
NUMBERS = (-1, 0, -(1 << 31), 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 10**400, 1e308, -1e308, 5e-324, 1.5, True, "1")
NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "m/../../x",
    "m\x00.gguf",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "~/.ssh/id_rsa",
    "a" * 100_000,
    "${HOME}",
    ".",
    "..",
)
BOMBS = (
    "{{ 9 ** 9 ** 9 }}",
    "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ 'x' * 999999999 }}",
)
LARGE, PIECE = 200_000_000, 1 << 20


class Row(NamedTuple):
    attack: str
    tries: int
    got_in: int
    broke: int
    notes: list[str]


class Target:
    """The server under attack. document: of all that can be asked."""

    def __init__(self, server: Server) -> None:
        self.key = server.key
        self.port = urllib.parse.urlsplit(server.address).port or 0
        self.document = json.loads(self.ask("GET", "/openapi.json")[1])

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield each operation's method, path, and schema of the body, {} if it has none."""
        for path, found in self.document["paths"].items():
            for method, operation in found.items():
                body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                ref = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
                yield method.upper(), path, self.document["components"]["schemas"].get(ref, {})

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str | None = None
    ) -> tuple[int, bytes]:
        """Status and answer; status 0 when the connection ended without one. key: "" sends none."""
        key = self.key if key is None else key
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, data, sent | (headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as e:
            return 0, repr(e).encode()
        finally:
            connection.close()

    def chats(self) -> bool:
        status, said = self.ask("POST", "/v1/chat/completions", CHAT)
        return status == 200 and bool(json.loads(said)["choices"])


def is_broken(status: int) -> bool:
    return status == 0 or (status >= 500 and status != 501)


def judged(attack: str, answers: list[tuple[str, int, bytes]], refused: tuple[int, ...] = ()) -> Row:
    """Return a row that judges answers, each as what was asked, status and text.

    refused: the statuses that count as a refusal; without any, every answer that is no server error is right.
    """
    broke = [f"{what}: {status} {said[:150]!r}" for what, status, said in answers if is_broken(status)]
    came = [(what, status) for what, status, _ in answers if refused and not is_broken(status)]
    in_ = [f"{what}: {status}" for what, status in came if status not in refused]
    leaks = [f"{what}: leaks" for what, _, said in answers if b"root:x:" in said or b"PRIVATE KEY" in said]
    return Row(attack, len(answers), len(in_) + len(leaks), len(broke), [*in_, *leaks, *broke])


def fuzzed(target: Target, examples: int) -> Iterator[Row]:
    """Fuzz every operation with schemathesis, half with data that fits its schema and half with data that does not."""
    schemas = {f"{method} {path}": schema for method, path, schema in target.operations()}
    for found in schemathesis.openapi.from_dict(target.document).get_all_operations():
        operation = found.ok()
        answers = [
            one
            for mode in schemathesis.GenerationMode
            for one in walked(target, operation, mode, schemas[operation.label], max(1, examples // 2))
        ]
        yield judged(f"fuzzing {operation.label}", answers)


def walked(target: Target, operation: Any, mode: Any, schema: dict[str, Any], examples: int) -> list[tuple]:
    """One operation, with data of one mode: what was asked, status, text."""
    answers: list[tuple[str, int, bytes]] = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        tame(case, schema, len(answers))
        path = case.path
        for name, value in (case.path_parameters or {}).items():
            path = path.replace(f"{{{name}}}", urllib.parse.quote(str(value), safe="%"))
        has_body = isinstance(case.body, dict | list | str | int | float | bytes | None)
        status, said = target.ask(case.method, path, case.body if has_body else None)
        answers.append((f"{mode} {str(case.body)[:300]}", status, said))

    ask()
    return answers


def tame(case: Any, schema: dict[str, Any], number: int) -> None:
    """Let answers be short, and let every second case that says too little about models and turns get further in."""
    if not isinstance(case.body, dict):
        return
    known = filled(schema)
    for name in {*LENGTHS, *known} & {*LENGTHS, "options"} & {*schema.get("properties", {})}:
        given_ = case.body.get(name)
        if name == "options" and isinstance(given_, dict | None):
            case.body["options"] = (given_ or {}) | {"num_predict": 4}
        elif name in known and given_ is None or type(given_) is int and not 0 < given_ <= 4:
            case.body[name] = 4
    if number % 2 and case.path not in CHANGES:
        case.body |= {name: known[name] for name in known if name in ("model", "messages")}


def hosts_and_origins(target: Target) -> Iterator[Row]:
    hosts = ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "a b", "localhost.evil.example:80")
    origins = ("https://evil.example", "http://localhost:3000", "null", "file://", "chrome-extension://other")
    for name, values in (("Host", hosts), ("Origin", origins)):
        answers = [
            (f"{method} {path} {value}", *target.ask(method, path, CHAT if schema else None, {name: value}))
            for method, path, schema in target.operations()
            for value in values
        ]
        yield judged(f"foreign {name}", answers, (400, 403))


def keys(target: Target) -> Iterator[Row]:
    for label, key in (
        ("no key", ""),
        ("wrong key", "sk-settle-wrong"),
        ("half a key", target.key[: len(target.key) // 2]),
    ):
        answers = [
            (f"{method} {path}", *target.ask(method, path, CHAT if schema else None, key=key))
            for method, path, schema in target.operations()
            if path != "/"  # says that a server runs, and nothing else
        ]
        yield judged(f"{label}, every route", answers, (401,))


def filled(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a small body of a schema: every required field, and the model."""
    known = {"model": "m", "messages": CHAT["messages"], "max_tokens": 4, "prompt": "a", "input": "a", "content": "a"}
    known |= {"query": "a", "documents": ["a"], "tokens": [1], "input_prefix": "a", "input_suffix": "b"}
    properties = schema.get("properties", {})
    body = {name: known[name] for name in known if name in properties}
    lengths = [name for name in LENGTHS if name in properties]
    return (
        body
        | ({lengths[0]: 4} if lengths else {})
        | ({"options": {"num_predict": 4}} if "options" in properties else {})
    )


def names(target: Target) -> Iterator[Row]:
    answers = []
    for method, path, schema in target.operations():
        for field in ("model", "name", "source", "destination", "from", "lora", "digest"):
            if field in schema.get("properties", {}):
                for name in NAMES:
                    value = [{"id": name}] if field == "lora" else name
                    body = ({} if path in CHANGES else filled(schema)) | {field: value}
                    body |= {"model": name} if field == "name" else {}  # Ollama's older word for the same
                    answers.append((f"{path} {field} {name[:40]}", *target.ask(method, path, body)))
        if "{" in path:
            for name in NAMES[:8]:
                asked = path.split("{")[0] + urllib.parse.quote(name, safe="")
                answers.append((f"{asked[:60]}", *target.ask(method, asked)))
    yield judged("names that lead out of the store", answers, (400, 403, 404, 405, 414, 501))


def large(target: Target) -> Iterator[Row]:
    answers = []
    for has_length in (True, False):
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/nope"):
            pieces = (b"x" * PIECE for _ in range(LARGE // PIECE))
            length = {"Content-Length": str(LARGE // PIECE * PIECE)} if has_length else {"Transfer-Encoding": "chunked"}
            answers.append((f"{path} {length}", *sent_in_pieces(target, path, pieces, length)))
    yield judged("200 MB of body, really sent", answers, (413, 404))


def sent_in_pieces(target: Target, path: str, pieces: Iterator[bytes], headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=120)
    try:
        headers |= {"Authorization": f"Bearer {target.key}"}
        connection.request("POST", path, pieces, headers, encode_chunked="Transfer-Encoding" in headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as e:
        return 0, repr(e).encode()
    finally:
        connection.close()


def slow(target: Target, seconds: float = 8.0) -> Iterator[Row]:
    """Open connections that send little by little, and check that others are answered meanwhile."""
    held = [socket.create_connection(("127.0.0.1", target.port), timeout=20) for _ in range(50)]
    for number, connection in enumerate(held):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target.key}\r\n"
        connection.sendall((head + ("Content-Length: 1000\r\n\r\n{" if number % 2 else "")).encode())
    end, answers = time.monotonic() + seconds, []
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < end:
            work = [pool.submit(target.ask, "POST", "/v1/chat/completions", CHAT) for _ in range(4)]
            for connection in held:
                try:
                    connection.sendall(b"x")
                except OSError:
                    pass  # it was closed, as it should be
            answers += [("a chat meanwhile", *one.result()) for one in work]
    for connection in held:
        connection.close()
    yield judged("50 slow connections, chats meanwhile", answers, (200,))


def deep(target: Target) -> Iterator[Row]:
    bodies = [
        b"[" * 1_000_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"messages":' + b"[" * 101 + b"]" * 101 + b"}",
    ]
    bodies += [b'{"model": NaN}', b"\xff\xfe", b'"' + b"\\ud800" * 1000 + b'"', b"1" * 1_000_000]
    answers = [
        (f"{path} {body[:20]!r}", *target.ask(method, path, body))
        for method, path, schema in target.operations()
        if schema
        for body in bodies
    ]
    yield judged("deep and broken JSON", answers, (400, 404, 413))


def leading_on(length: int) -> dict[str, Any]:
    found = {f"d{n}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(length)}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": found | {f"d{length}": {}}}


def bombs(target: Target) -> Iterator[Row]:
    path = "/v1/chat/completions"
    asked: list[dict[str, Any]] = []
    for bomb in BOMBS:
        asked += [{"chat_template_kwargs": {name: bomb}} for name in ("messages", "template", "x", "documents", "self")]
        asked += [{"messages": [{"role": role, "content": bomb}]} for role in ("system", "user", "assistant")]
        asked.append({"tools": [{"type": "function", "function": {"name": "f", "description": bomb}}]})
    yield judged("template bombs", [(str(one)[:80], *target.ask("POST", path, CHAT | one)) for one in asked])
    chain = "\n".join(f'r{n}: r{n + 1} | "a"' for n in range(20_000))
    schemas = [leading_on(5_000), {"enum": [str(n) for n in range(50_000)]}, {"pattern": "((a{999}){999}){999}"}]
    asked = [{"response_format": {"type": "json_object", "schema": schema}} for schema in schemas]
    asked += [{"tools": [{"type": "function", "function": {"name": "f", "parameters": s}}]} for s in schemas]
    asked += [
        {"grammar": f'%llguidance {{}}\nstart: r0\n{chain}\nr20000: "b"\n'},
        {"grammar": "root ::= " + "(" * 10**5},
    ]
    asked += [{"grammar": "root ::= " + " ".join(["r"] * 10**5) + '\nr ::= "a"'}]
    yield judged("grammars and schemas as bombs", [(str(a)[:80], *target.ask("POST", path, CHAT | a)) for a in asked])


def numeric(schema: dict[str, Any]) -> Iterator[str]:
    """Names of the fields that take a number."""
    for name, field in schema.get("properties", {}).items():
        kinds = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
        if any(kind.get("type") in ("integer", "number") for kind in kinds):
            yield name


def numbers(target: Target) -> Iterator[Row]:
    answers = []
    for method, path, schema in target.operations():
        if path in CHANGES:
            continue
        for field in numeric(schema):
            for number in NUMBERS:
                body = filled(schema)
                if field in LENGTHS and number in (-1, 0):
                    continue  # as many as there is room for: takes its time, and is no attack
                answers.append(
                    (f"{path} {field} {str(number)[:20]}", *target.ask(method, path, body | {field: number}))
                )
    yield judged("odd numbers in every field", answers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=int, default=200)
    given_ = parser.parse_args()
    is_well, notes = True, []
    print("| attack | tries | got in | server errors | answers afterwards |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = shutil.copy(given_.model, folder)  # what deletes models may come through
        target = Target(stack.enter_context(serving(Path(model))))
        for attack in (hosts_and_origins, keys, names, large, slow, deep, bombs, numbers):
            for row in attack(target):
                is_well &= tell(row, target, notes)
        for row in fuzzed(target, given_.examples):
            is_well &= tell(row, target, notes)
    print("\n".join(["", *notes]))
    sys.exit(not is_well)


def tell(row: Row, target: Target, notes: list[str]) -> bool:
    answers = target.chats()
    print(f"| {row.attack} | {row.tries} | {row.got_in} | {row.broke} | {'yes' if answers else '**no**'} |", flush=True)
    notes += [f"- {row.attack}: {note}" for note in row.notes[:5]]
    return answers and not row.got_in and not row.broke


if __name__ == "__main__":
    main()
