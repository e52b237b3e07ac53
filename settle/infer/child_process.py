"""One llama.cpp child: started, watched and ended. What it runs is `server_child.py`."""

import collections
import contextlib
import dataclasses
import errno
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

from settle.base.errors import EngineError, FormatError, ResourceError
from settle.base.python_command import NEW_GROUP, script_command
from settle.formats import Metadata
from settle.formats.gguf import read_gguf
from settle.library.facts import Use, bytes_per_token, longest_context
from settle.machine import memory, num_threads

STOP_SECONDS = 3.0
LOAD_SECONDS, LOAD_BYTES_PER_SECOND = 60.0, 25e6  # of loading: a slow disk, a busy machine
SPARE_BYTES = 3 << 30  # that a child may allocate beyond what it needs: stacks, batches, earlier prompts, grammars
ENDING_SECONDS = 30.0  # llama.cpp writes why it fails from a thread of its own, after the child's stdout has ended
STDERR_LINES, SHOWN_LINES = 200, 8  # of llama.cpp's output: remembered, and shown in an error

GRAMMAR_ERROR = "llg error:"  # how llama.cpp says that it no longer keeps to a grammar; the answer itself goes on

ALIAS = "settle-engine"  # what a child calls its model: its answers must not reveal the file's path

_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)

Json = dict[str, Any]  # an answer of the child: whoever asked knows its fields
Body = Mapping[str, object]  # of a request to it


@dataclasses.dataclass(frozen=True)
class Draft:
    """A small model of the same tokenizer that proposes tokens.

    It proposes up to `tokens`, as long as it gives each at least the probability `sure`; the model then reads them
    all at once and keeps those that it would have written itself."""

    path: Path
    tokens: int = 16
    sure: float = 0.8


@dataclasses.dataclass(frozen=True)
class Load:
    """What a child loads, and what for.

    context: tokens of each of the `slots` requests that it works on at the same time. adapters: LoRA files over the
    model, off until a request asks for one by its place. template: the chat template instead of the file's own.
    mean_pooling: for embeddings by a model that was not made for them.
    draft: the model that proposes tokens; llama.cpp reports no probabilities of the tokens that it proposed.
    waiting: requests that may wait for a slot. prompt_cache_mib: memory for the beginnings of earlier prompts, beside
    what the slots hold. engine: a folder with the package of another version of llama.cpp, instead of the one that is
    installed. room: bytes of memory that the child holds at most, as far as pages of the model's file can go and be
    read again; Linux only. memory: bytes that it may allocate, mapped files aside, before it ends: a chat template is a
    program, and llama.cpp runs it without limits; Linux only, and not where llama.cpp has a GPU.
    """

    path: Path
    context: int
    slots: int = 1
    adapters: tuple[Path, ...] = ()
    template: str | None = None
    threads: int | None = None
    use: Use = "generate"
    mean_pooling: bool = False
    waiting: int = 0
    prompt_cache_mib: int = 0
    draft: Draft | None = None
    engine: Path | None = None
    room: int | None = None
    memory: int | None = None

    def to_json(self) -> Json:
        return dataclasses.asdict(self) | {
            "path": str(self.path.resolve()),
            "adapters": [str(path.resolve()) for path in self.adapters],
            "draft": dataclasses.asdict(self.draft) | {"path": str(self.draft.path.resolve())} if self.draft else None,
            "threads": num_threads(self.threads),
            "alias": ALIAS,
            "engine": None,  # the child finds it by its path of modules
        }


def load_seconds(num_bytes: int) -> float:
    """Return how long a child of a server may take to load a file of that size."""
    return LOAD_SECONDS + num_bytes / LOAD_BYTES_PER_SECOND


def unknown_architecture(kind: str, path: Path) -> EngineError:
    """Return the error for a file that llama.cpp does not know: it names the nearest family that settle knows."""
    from settle.model.families import of_gguf  # loads torch, which answering does not need

    what, file = f"llama.cpp does not know the architecture {kind!r} of {path.name}", read_gguf(path)
    try:
        of_gguf(file.metadata, file.tensors)
    except FormatError as e:
        return EngineError(f"{what}; settle says: {e.what}", e.fix)
    return EngineError(what, "install a newer llama-cpp-python")


class ChildProcess:
    """A script of this room in a process of its own, which ends when its stdin does.

    It reads one JSON line of settings, and writes one once it is ready. script: its file below this folder. name: of
    the model that it loads, for errors. environment: variables beside ours. ready_seconds: how long loading may take
    before it counts as failed.
    """

    def __init__(
        self,
        script: str,
        settings: Body,
        name: str,
        environment: Mapping[str, str],
        ready_seconds: float,
    ) -> None:
        self.name = name
        self._script, self._settings = Path(__file__).parent / script, dict(settings)
        self._environment, self._ready_seconds = dict(environment), ready_seconds
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self.num_grammar_errors, self.grammar_error = 0, ""  # of all requests: llama.cpp does not say which; the latest

    def start(self) -> None:
        """Start the process and wait until it has loaded the model. Raises EngineError."""
        self._begin()

    def _begin(self) -> Json:
        """Start the process, wait until it has loaded the model, and return its answer. Raises EngineError."""
        process = self._process = subprocess.Popen(
            script_command(self._script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            creationflags=NEW_GROUP,
            env=os.environ | self._environment,
        )
        assert process.stdin and process.stdout and process.stderr
        self._stdin, self._stdout = process.stdin, process.stdout
        self._drain = threading.Thread(target=self._read_stderr, args=(process.stderr,), daemon=True)
        self._drain.start()
        try:
            self._stdin.write(json.dumps(self._settings).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            pass  # the child is dead already; its stderr is the error
        answer: list[bytes] = []
        reader = threading.Thread(target=lambda: answer.append(self._stdout.readline()), daemon=True)
        reader.start()
        reader.join(self._ready_seconds)
        if not answer or not answer[0]:
            hung = not answer
            if not hung:
                self._read_to_the_end(ENDING_SECONDS)
            self.close()
            if unknown := re.search(r"unknown model architecture: '(.*)'", self.tail()):
                raise unknown_architecture(unknown[1], Path(str(self._settings["path"])))
            why = f"did not load it within {self._ready_seconds:.0f} s" if hung else "ended while loading it"
            raise EngineError(f"llama.cpp {why}: {self.name}{self.tail()}", self.fix)
        ready: Json = json.loads(answer[0])
        return ready

    def close(self) -> None:
        """End the process: terminate, three seconds, kill. Calling it twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if os.name == "nt":
                process.terminate()
            else:
                os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._drain.join(STOP_SECONDS)
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_open(self) -> bool:
        """Whether it was started and not closed; it may have died since."""
        return self._process is not None

    @property
    def fix(self) -> str:
        return "export the model again, or ask for a smaller context if memory is short"

    def died(self) -> EngineError:
        """Return the error of a request that got no answer."""
        self._read_to_the_end(STOP_SECONDS)  # it may live, and only the connection be broken
        return EngineError(f"llama.cpp died with {self.name} loaded{self.tail()}", self.fix)

    def tail(self) -> str:
        """Return the end of llama.cpp's output: its errors where it names some."""
        lines = list(self._stderr)
        errors = [line for line in lines if " E " in line or "error" in line.lower()]
        return "".join("\n  " + line for line in (errors or lines)[-SHOWN_LINES:])

    def _read_to_the_end(self, seconds: float) -> None:
        """Give a process that is ending `seconds` to end by itself, and read its stderr to the end."""
        process = self._process  # another thread may close it meanwhile
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                self._drain.join(ENDING_SECONDS)

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with stream:  # closed here: another thread would wait for this one, for as long as anybody has its other end
            for line in stream:
                text = line.decode("utf-8", "replace").rstrip()
                self._stderr.append(text)
                if GRAMMAR_ERROR in text:
                    self.grammar_error = text.partition(GRAMMAR_ERROR)[2].strip()
                    self.num_grammar_errors += 1


class Child(ChildProcess):
    """A model in a llama.cpp process of its own, which answers over loopback with a random key."""

    def __init__(self, load: Load, ready_seconds: float = 300.0) -> None:
        self.load = load
        self.api_key = secrets.token_hex(16)
        # many small products one after the other: on a machine that has other work, threads that wait for each other
        # spinning are three times slower than threads that sleep
        environment = {"GOMP_SPINCOUNT": "200"} if load.slots > 1 else {}
        if load.engine:
            paths = [str(load.engine.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        settings = load.to_json() | {"api_key": self.api_key}
        super().__init__("server_child.py", settings, load.path.name, environment, ready_seconds)

    def start(self) -> None:
        """Start the process and wait until it has loaded the model. Raises EngineError."""
        ready = self._begin()
        self.address = urllib.parse.urlsplit(ready["address"])
        self.is_guided: bool = ready["is_guided"]  # knows llguidance's grammars

    def open(self, path: str, body: Body) -> tuple[HTTPConnection, HTTPResponse]:
        """Return its answer to a request, which may still be coming; close the connection.

        Raises EngineError when it refuses, is gone, or cannot be reached."""
        if not self.is_open:
            raise EngineError("the engine is not running", "use it as a context manager: `with … as engine:`")
        connection = HTTPConnection(self.address.hostname or "", self.address.port)
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, OSError) and error.errno in _UNREACHABLE:
                raise EngineError(
                    f"llama.cpp runs, and cannot be reached at {self.address.hostname}: {error.strerror}",
                    "it needs the loopback interface, though no other network: `ip link set lo up`",
                ) from None
            raise self.died() from error
        if response.status != 200:
            detail = response.read().decode("utf-8", "replace")
            connection.close()
            raise EngineError(f"llama.cpp refused {path}: {detail[:500]}", self._refusal_fix(detail))
        return connection, response

    def post(self, path: str, body: Body) -> Json:
        """Return its whole answer to a request. Raises EngineError."""
        connection, response = self.open(path, body)
        try:
            # errors="replace": a byte-level token can be half a character.
            answer: Json = json.loads(response.read().decode("utf-8", "replace"))
            return answer
        except (OSError, http.client.HTTPException) as error:
            raise self.died() from error
        finally:
            connection.close()

    def _refusal_fix(self, detail: str) -> str:
        if "context" in detail or "too large" in detail:
            what = "prompt" if self.load.use == "generate" else "text"
            return f"shorten the {what}: {self.name} was opened with a context of {self.load.context} tokens"
        return "check the request"


MEMORY_OVERHEAD = 1.15  # memory of a child ÷ weights and context: buffers for one batch
LONGEST_UNASKED = 1 << 17  # tokens: a longer context must be asked for, since a file may claim any


def needed_bytes(weights: int, context: int) -> int:
    """Memory that a child needs. weights, context: bytes of its files, and of keys and values in all its slots."""
    return int(MEMORY_OVERHEAD * (weights + context))


def fitting_context(name: str, metadata: Metadata, asked: int | None, slots: int, beyond: bool = False) -> int:
    """Return the tokens of context for each slot.

    Never more than the model knows, unless `beyond` that was asked for, nor than memory holds, whatever the file says.
    Raises ResourceError when what was asked for does not fit.
    """
    longest, per_token = longest_context(name, metadata), bytes_per_token(metadata) * slots
    longest = max(longest, asked or 0) if beyond else longest
    fits = memory().available // 2 // max(per_token, 1)  # half is left for everything else
    if asked is not None and min(asked, longest) > fits:
        raise ResourceError(
            f"a context of {min(asked, longest):,} tokens takes {min(asked, longest) * per_token / 1e9:.1f} GB, "
            f"and {memory().available / 1e9:.1f} GB are free",
            f"ask for {fits:,} at most",
        )
    return max(1, min(asked or LONGEST_UNASKED, longest, fits))


C = TypeVar("C", bound=ChildProcess)


class ChildModel(Generic[C]):
    """A model whose child process it starts and ends. Use it as a context manager."""

    _child: C

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the child and wait until it has loaded the model. Raises EngineError."""
        self._child.start()

    def close(self) -> None:
        """End the child. Calling it twice is harmless."""
        self._child.close()

    def alive(self) -> bool:
        return self._child.alive()

    @property
    def pid(self) -> int | None:
        return self._child.pid
