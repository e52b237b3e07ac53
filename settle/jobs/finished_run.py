"""A finished run, as the Python API returns it: its verdict, its result, and a way to ask its model."""

from collections.abc import Iterator, Mapping

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.settings import resolve
from settle.infer.engine import Engine
from settle.jobs.job import find_job, start
from settle.library.resolve import resolve_gguf


def run_job(name: str, asked: Mapping[str, object]) -> "FinishedRun":
    """A job without a terminal, from its start to its end. Raises SettleError."""
    job = find_job(name)
    assert job is not None
    settings = resolve(job.settings, [("asked", asked)]).value
    if settings.dry:
        raise UsageError("dry=True makes no run", f"use `settle {name} --dry`")
    events = Events()
    try:
        return FinishedRun(start(job, settings, events).run)
    finally:
        events.close()


class FinishedRun:
    """Raises RunError for a run that is not finished."""

    def __init__(self, run: Run) -> None:
        result = run.result()
        if result is None:
            raise RunError(f"{run.name} is not finished", f"`settle resume {run.name}` continues it")
        self.path = run.path
        self.name = run.name
        self.result: Result = result

    @classmethod
    def find(cls, name: str) -> "FinishedRun":
        return cls(Run.find(name))

    @property
    def verdict(self) -> str:
        """settled, out of budget, overfitting, diverged or broken."""
        return self.result.verdict

    def generate(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> str:
        """The model's answer to `prompt`, or its completion, by the exported file in llama.cpp."""
        return "".join(self.stream(prompt, max_tokens, temperature, seed))

    def stream(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> Iterator[str]:
        """`generate`, piece by piece."""
        model = resolve_gguf(f"run:{self.path.name}")
        with Engine(model.weights, adapter=model.adapter) as engine:
            ids = prompt_ids(engine, prompt)
            yield from engine.complete(ids, max_tokens=max_tokens, temperature=temperature, seed=seed)


def prompt_ids(engine: Engine, prompt: str) -> list[int]:
    """Ids of a prompt: a question where the model takes turns, otherwise a text to complete."""
    return engine.turns([{"role": "user", "content": prompt}]) if engine.takes_turns else engine.plain(prompt)
