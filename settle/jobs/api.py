"""The Python API: `import settle; settle.train("~/notes")`. `settle` itself loads this only when it is used."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.run.result import Result
from settle.base.settings import resolve
from settle.base.words.notebook import html_picture
from settle.data.decisions.answers import Answer
from settle.data.decisions.questions import Question
from settle.infer.decisions.decider import Decider
from settle.infer.engine import Engine
from settle.jobs.index_settings import IndexSettings
from settle.jobs.job import find_job, start
from settle.jobs.settings import TUNING_JOBS
from settle.library.resolve import resolve_gguf

if TYPE_CHECKING:
    from settle.retrieve.answer.askable import AskableCollection


class FinishedRun:
    """A finished run: its verdict, its result, and a way to ask its model. Raises RunError for one that is not."""

    def __init__(self, run: Run) -> None:
        result = run.result()
        if result is None:
            raise RunError(f"{run.name} is not finished", f"`settle resume {run.name}` continues it")
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

    def generate(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> str:
        """The model's answer to `prompt`, or its completion, by the exported file in llama.cpp."""
        return "".join(self.stream(prompt, max_tokens, temperature, seed))

    def stream(self, prompt: str, max_tokens: int = 128, temperature: float = 0.8, seed: int = 0) -> Iterator[str]:
        """`generate`, piece by piece."""
        model = resolve_gguf(f"run:{self.path.name}")
        with Engine(model.weights, adapter=model.adapter) as engine:
            ids = _prompt_ids(engine, prompt)
            yield from engine.complete(ids, max_tokens=max_tokens, temperature=temperature, seed=seed)

    def decide(self, state: object) -> dict[str, Answer]:
        """What a decision model answers to the questions that it was tuned for, by their names: `.key` is the likeliest
        option, `.probabilities` are those of all, in the order of `.question.options`. state: text, or JSON. Raises
        UsageError for another model."""
        with Decider(resolve_gguf(f"run:{self.path.name}").weights) as decider:
            questions = {name: Question.from_json(q, name) for name, q in decider.keys.questions.items()}
            return dict(zip(questions, decider.decide(state, list(questions.values())), strict=True))


def train(*inputs: str, **settings: object) -> FinishedRun:
    """Train a model from text, as `settle train` does: the same settings as keywords, groups as dicts.

    Returns the finished run: `.verdict`, `.result`, `.path`, `.generate(prompt)`. Raises SettleError.
    """
    return _run_job("train", {"inputs": list(inputs), **settings})


def tune(model: str, *inputs: str, **settings: object) -> FinishedRun:
    """Fine-tune a model on your own examples, as `settle tune` does; settings and result as of `train`."""
    objective = settings.get("objective")
    name = objective.get("name") if isinstance(objective, dict) else objective
    return _run_job(TUNING_JOBS.get(str(name), "tune"), {"model": model, "inputs": list(inputs), **settings})


def distill(teacher: str, *inputs: str, **settings: object) -> FinishedRun:
    """Distil a large model into a smaller one, as `settle distill` does; settings and result as of `train`."""
    return _run_job("distill", {"teacher": teacher, "inputs": list(inputs), **settings})


def shrink(model: str, *inputs: str, **settings: object) -> FinishedRun:
    """Make a model smaller within a budget, as `settle shrink` does: `settle.shrink("notes", to="400MB")`."""
    return _run_job("shrink", {"model": model, "inputs": list(inputs), **settings})


def index(path: str, *more: str, **settings: object) -> "AskableCollection":
    """Index folders of documents, as `settle index` does, and open the collection, which answers questions:
    `settle.index("~/docs").ask("How do I rotate the key?")`. Raises SettleError.
    """
    from settle.jobs.index import index as run_index  # needs the extra `rag`
    from settle.retrieve.answer.askable import AskableCollection

    asked = resolve(IndexSettings, [("asked", {"paths": [path, *more], **settings})]).value
    name = run_index(asked, Events())
    if name is None:
        raise UsageError("nothing was indexed", "leave delete=True out")
    return AskableCollection(name)


def open_run(name: str) -> FinishedRun:
    """The finished run of that name. Raises UsageError when there is none."""
    return FinishedRun.find(name)


def _run_job(name: str, asked: Mapping[str, object]) -> "FinishedRun":
    """A job without a terminal, from its start to its end. Raises SettleError."""
    job = find_job(name)
    assert job is not None
    settings = resolve(job.settings, [("asked", asked)]).value
    if settings.dry:
        raise UsageError("dry=True makes no run", f"use `settle {name} --dry`")
    if getattr(settings, "seeds", 1) > 1:
        raise UsageError("seeds makes several runs", f"use `settle {name} --seeds`, or call this once for every seed")
    events = Events()
    try:
        return FinishedRun(start(job, settings, events).run)
    finally:
        events.close()


def _prompt_ids(engine: Engine, prompt: str) -> list[int]:
    """Ids of a prompt: a question where the model takes turns, otherwise a text to complete."""
    return engine.turns([{"role": "user", "content": prompt}]) if engine.takes_turns else engine.plain(prompt)
