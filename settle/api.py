"""The Python API: `import settle; settle.train("~/notes")`. `settle` itself loads this only when it is used.

The functions take the settings of the command of their name as keywords. Progress is shown on stderr in a terminal, and
as plain lines in a notebook; `progress=False` is silent, `progress=True` shows it anywhere.
"""

import atexit
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Self

from settle import retrieve
from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Event, ForecastComparison, Listing, ResultReady
from settle.base.python_command import module_command
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.server_state import running_server, server_key
from settle.base.settings import resolve
from settle.base.visible import html_picture, html_table, html_text
from settle.base.words.figures import comparison, listed
from settle.commands import Command
from settle.data.decisions.questions import DecisionAnswer, Question
from settle.data.layouts import Message
from settle.infer.chat_session import ChatSession, Sampling
from settle.infer.decider import Decider
from settle.infer.engine import Engine
from settle.jobs.generate import Drawing, complete
from settle.jobs.job import find_job, start
from settle.jobs.job import resume as resume_run
from settle.jobs.settings import TUNING_JOBS, IndexSettings
from settle.library.resolve import resolve_gguf
from settle.show.signs import visible_event
from settle.show.tables import aligned
from settle.show.talk import Talk, notebook_console

Settings = Mapping[str, object]
STOP_SECONDS = 10.0  # of a server, whose answers in flight end first


class FinishedRun:
    """A finished run: its verdict, its result, and a way to ask its model. Raises RunError for one that is not."""

    def __init__(self, run: Run) -> None:
        result = run.result()
        if result is None:
            raise RunError(
                f"{run.name} is not finished",
                f"`settle resume {run.name}`, in Python `settle.resume({run.name!r})`, continues it",
            )
        self.path = run.path
        self.name = run.name
        self.result: Result = result

    def __repr__(self) -> str:
        best = self.result.best
        bits = f", {best.bits_per_byte:.4f} bits per byte" if best and best.bits_per_byte is not None else ""
        return f"<FinishedRun {self.name}: {self.verdict}{bits}>"

    def _repr_html_(self) -> str:
        """For a notebook: the result, and the curves."""
        picture = self.path / "out" / "curves.png"
        curves = html_picture(picture.read_bytes(), f"curves of {self.name}") if picture.is_file() else ""
        return self.result._repr_html_() + curves

    @classmethod
    def find(cls, name: str) -> "FinishedRun":
        return cls(Run.find(name))

    @property
    def verdict(self) -> str:
        """settled, learned, out of budget, overfitting, diverged or broken."""
        return self.result.verdict

    def generate(self, prompt: str, max_tokens: int = 128, temperature: float | None = None, seed: int = 0) -> str:
        """Answer or complete `prompt` with the exported file, in llama.cpp.

        temperature: what is recommended for the model if not given.
        """
        return "".join(self.stream(prompt, max_tokens, temperature, seed))

    def stream(
        self, prompt: str, max_tokens: int = 128, temperature: float | None = None, seed: int = 0
    ) -> Iterator[str]:
        """`generate`, piece by piece."""
        model = resolve_gguf(f"run:{self.path.name}")
        with Engine(model.weights, adapter=model.adapter) as engine:
            ids = _prompt_ids(engine, prompt)
            drawn = Sampling(max_tokens, temperature).settings(engine.metadata)
            yield from engine.complete(ids, max_tokens=max_tokens, seed=seed, sampling=drawn)

    def decide(self, state: object) -> dict[str, DecisionAnswer]:
        """Return a decision model's answers to the questions that it was tuned for, by their names.

        `.key` is the likeliest option, `.probabilities` are those of all, in the order of `.question.options`. state:
        text, or JSON. Raises UsageError for another model.
        """
        with Decider(resolve_gguf(f"run:{self.path.name}").weights) as decider:
            questions = {name: Question.from_json(q, name) for name, q in decider.keys.questions.items()}
            return dict(zip(questions, decider.decide(state, list(questions.values())), strict=True))


class Conversation:
    """A conversation with a model in llama.cpp, as `settle.chat` returns it.

    Use it as a context manager, or close it; it is one process with the model in memory.
    """

    def __init__(self, name: str, sampling: Sampling, system: str | None, template: bool, context: int | None) -> None:
        model = resolve_gguf(name)
        self.name, self.messages = model.name, list[dict[str, str]]()
        self._engine = Engine(model.weights, context, adapter=model.adapter)
        self._engine.start()
        try:
            self._session = ChatSession(self._engine, sampling, Events(), system, template, self.messages)
        except UsageError:
            self._engine.close()
            raise

    def __repr__(self) -> str:
        return f"<Conversation with {self.name}: {len(self.messages)} messages>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> str:
        """Return the answer to a message; a model that takes no turns completes it. Raises SettleError."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """`say`, piece by piece."""
        return self._session.answer(text)

    def close(self) -> None:
        """End the model's process. Calling it twice is harmless."""
        self._engine.close()


class ServerProcess:
    """A server in a process of its own: what `settle.serve` returns. It ends with `close`, or with this process."""

    def __init__(self, arguments: Sequence[str], seconds: float = 120.0) -> None:
        with tempfile.TemporaryFile() as talk:
            command = module_command("settle", "serve", *arguments)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=talk, stderr=talk)
            atexit.register(self.close)
            until = time.monotonic() + seconds
            while (server := running_server()) is None or server.pid != self._process.pid:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.close()
                    talk.seek(0)
                    raise RunError("the server did not start", talk.read().decode("utf-8", "replace").strip()[-800:])
                time.sleep(0.05)
        self.address = server.address
        self.key = server_key() if server.needs_key else None

    def __repr__(self) -> str:
        state = "running" if self._process.poll() is None else "stopped"
        return f"<ServerProcess {self.address}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server as Ctrl-C does. Calling it twice is harmless."""
        atexit.unregister(self.close)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Report:
    """What a command said: `.result` as `--json` prints it, `.tables`, `.answer` and `.exit_code`.

    exit_code: 0 done, 3 no answer, or not better. `report["key"]` is a value of the result.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.result: Mapping[str, object] = {}
        self.tables: list[Listing] = []
        self.answer = ""
        self.exit_code = 0

    def listen(self, event: Event) -> None:
        """Keep what the command reports."""
        match event:
            case ResultReady():
                self.result = event.result
            case AnswerText():
                self.answer += event.text
            case Listing():
                self.tables.append(event)
            case ForecastComparison():
                self.tables.append(comparison(event.forecast, event.actual))

    def __getitem__(self, key: str) -> object:
        return self.result[key]

    def __repr__(self) -> str:
        parts = [self.answer.strip(), *(aligned(table) for table in self.tables), *self._sentences()]
        return "\n".join(part for part in parts if part) or f"<{self.command}: {', '.join(self.result)}>"

    def _repr_html_(self) -> str:
        tables = [html_table(listed(table)[0], table.columns, table.title) for table in self.tables]
        texts = [self.answer.strip(), *self._sentences()]
        return "".join([*tables, *(html_text(text) for text in texts if text)])

    def _sentences(self) -> list[str]:
        return [str(self.result[key]) for key in ("sentence", "why") if isinstance(self.result.get(key), str)]


def train(*inputs: str, progress: bool | None = None, **settings: object) -> FinishedRun:
    """Train a model from text, as `settle train` does: the same settings as keywords, groups as dicts.

    Returns the finished run: `.verdict`, `.result`, `.path`, `.generate(prompt)`. Raises SettleError.
    """
    return _run_job("train", {"inputs": list(inputs), **settings}, progress)


def tune(model: str, *inputs: str, progress: bool | None = None, **settings: object) -> FinishedRun:
    """Fine-tune a model on your own examples, as `settle tune` does; settings and result as of `train`."""
    objective = settings.get("objective")
    name = objective.get("name") if isinstance(objective, dict) else objective
    job = TUNING_JOBS.get(str(name), "tune")
    return _run_job(job, {"model": model, "inputs": list(inputs), **settings}, progress)


def distill(teacher: str, *inputs: str, progress: bool | None = None, **settings: object) -> FinishedRun:
    """Distil a large model into a smaller one, as `settle distill` does; settings and result as of `train`."""
    return _run_job("distill", {"teacher": teacher, "inputs": list(inputs), **settings}, progress)


def shrink(model: str, *inputs: str, progress: bool | None = None, **settings: object) -> FinishedRun:
    """Make a model smaller within a budget, as `settle shrink` does: `settle.shrink("notes", to="400MB")`."""
    return _run_job("shrink", {"model": model, "inputs": list(inputs), **settings}, progress)


def index(path: str, *more: str, progress: bool | None = None, **settings: object) -> "retrieve.Collection":
    """Index folders of documents, as `settle index` does, and open the collection.

    It answers questions: `settle.index("~/docs").ask("How do I rotate the key?")`. Raises SettleError.
    """
    from settle.jobs.index import index as run_index  # needs the extra `rag`

    asked = resolve(IndexSettings, [("asked", {"paths": [path, *more], **settings})]).value
    with _events(progress) as events:
        name = run_index(asked, events)
    if name is None:
        raise UsageError("nothing was indexed", "leave delete=True out")
    return retrieve.Collection(name)


def pull(what: str, progress: bool | None = None, **settings: object) -> Report:
    """Get a model onto this machine, as `settle pull` does: `settle.pull("smollm2")["name"]`. Raises SettleError."""
    return _run_command("pull", {"what": what, **settings}, progress)


def fit(*models: str, progress: bool | None = None, **settings: object) -> Report:
    """Show which models fit in a machine's memory, and how fast they answer.

    As `settle models fit` does: `settle.fit("smollm2", machine="mac m4 pro 24gb", context="32k")`. Raises SettleError.
    """
    return _run_command("models", {"names": ["fit", *models], **settings}, progress)


def pick(task: str, progress: bool | None = None, **settings: object) -> Report:
    """Choose a model for a task by measuring a few: `settle.pick("mails", prompts=FILE)`.

    As `settle pick` does. The exit code is 3 where none of them will do. Raises SettleError.
    """
    return _run_command("pick", {"task": task, **settings}, progress)


def choose(examples: str, progress: bool | None = None, **settings: object) -> Report:
    """Find out whether a better prompt, documents or tuning is enough, as `settle choose` does.

    The exit code is 3 where the examples are too few to tell. Raises SettleError.
    """
    return _run_command("choose", {"examples": examples, **settings}, progress)


def chat(
    model: str, system: str | None = None, template: bool = False, context: int | None = None, max_tokens: int = 400,
    temperature: float | None = None, top_p: float | None = None, top_k: int | None = None, seed: int | None = None,
) -> Conversation:  # fmt: skip
    """Open a conversation with a run's model, one of the store, or a .gguf file.

    `settle.chat("smollm2").say("Hi")` answers. Sampling settings that are not given are those that the model's maker
    recommends. Raises SettleError.
    """
    return Conversation(model, Sampling(max_tokens, temperature, top_p, top_k, seed), system, template, context)


def generate(
    model: str, prompts: Sequence[str | Sequence[Message]], samples: int = 1, max_tokens: int = 512,
    temperature: float | None = None, schema: Settings | None = None, think: bool = False,
    context: int | None = None, seed: int = 0,
) -> list[list[str]]:  # fmt: skip
    """Answer many prompts, each a text or a list of messages; returns `samples` answers of each.

    It is what `settle generate` does with a file: several at a time, and a known answer is not made again. schema: a
    JSON Schema that every answer fits. Raises SettleError.
    """
    drawing = Drawing(samples, max_tokens, temperature, seed, schema, think, context)
    return complete(model, prompts, drawing, Events())


def serve(*models: str, **settings: object) -> ServerProcess:
    """Start `settle serve` in the background, with its options as keywords.

    `settle.serve("smollm2", port=0).address` is what clients of OpenAI, Anthropic and Ollama connect to, `.key` their
    API key. Raises SettleError.
    """
    resolve(Command.part("serve"), [("asked", {"models": list(models), **settings})])
    arguments = list(models)
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [option] if value is True else [f"{option}={one}" for one in values if one not in (None, False)]
    return ServerProcess(arguments)


def decide(model: str, text: str | None = None, progress: bool | None = None, **settings: object) -> Report:
    """Ask a decision model about a text, or about `rows=FILE`, as `settle decide` does.

    `["answers"]` has every option's probability. The exit code is 3 where every answer is refused. Raises SettleError.
    """
    if text is None and settings.get("rows") is None:
        raise UsageError("there is nothing to decide about", "give a text, or rows=FILE")
    return _run_command("decide", {"name": model, "text": text, **settings}, progress)


def doctor(subject: str | None = None, progress: bool | None = None, **settings: object) -> Report:
    """Find out what is wrong with a run, a model or this machine, as `settle doctor` does.

    The exit code is 3 where something is wrong. Raises SettleError.
    """
    return _run_command("doctor", {"subject": subject, **settings}, progress)


def eval(tuned: str, progress: bool | None = None, **settings: object) -> Report:
    """Compare a tuned model with its base, as `settle eval` does; `verify=True` checks its verdict.json.

    The exit code is 3 where it is not better. Raises SettleError.
    """
    return _run_command("eval", {"tuned": tuned, **settings}, progress)


def open_run(name: str) -> FinishedRun:
    """Return the finished run of that name. Raises UsageError when there is none."""
    return FinishedRun.find(name)


def resume(name: str, progress: bool | None = None) -> FinishedRun:
    """Resume an interrupted run, as `settle resume` does, and return it finished. Raises SettleError."""
    with _events(progress) as events:
        resume_run(name, events)
    return FinishedRun.find(name)


def _run_job(name: str, asked: Settings, progress: bool | None) -> FinishedRun:
    """Run a job from its start to its end. Raises SettleError."""
    job = find_job(name)
    settings = resolve(job.settings, [("asked", asked)]).value
    if settings.dry:
        raise UsageError("dry=True makes no run", f"use `settle {name} --dry`")
    if getattr(settings, "seeds", 1) > 1:
        raise UsageError("seeds makes several runs", f"use `settle {name} --seeds`, or call this once for every seed")
    with _events(progress) as events:
        return FinishedRun(start(job, settings, events).run)


def _run_command(name: str, asked: Settings, progress: bool | None) -> Report:
    """Run a command and return what it reports. Raises SettleError."""
    report = Report(name)
    command = resolve(Command.part(name), [("asked", asked)]).value
    with _events(progress) as events, getattr(command, "computing", nullcontext)():
        events.listeners.append(report.listen)
        report.exit_code = command.run(events)
    return report


@contextmanager
def _events(progress: bool | None) -> Iterator[Events]:
    """Yield a channel whose events are shown where somebody sees it: on stderr, or in a notebook's cell."""
    is_shown = progress if progress is not None else sys.stderr.isatty() or _is_notebook()
    talk = Talk(notebook_console() if _is_notebook() else None) if is_shown else None
    events = Events(listeners=[lambda event: talk.show(visible_event(event))] if talk else [])
    try:
        yield events
    finally:
        events.close()
        if talk is not None:
            talk.close()


def _is_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _prompt_ids(engine: Engine, prompt: str) -> list[int]:
    """Ids of a prompt: a question where the model takes turns, otherwise a text to complete."""
    return engine.turns([{"role": "user", "content": prompt}]) if engine.takes_turns else engine.plain(prompt)
