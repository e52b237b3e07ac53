"""The batch job: a model answers each row of a table, several at a time. An answer that is known is not made again."""

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

from settle.base.errors import DataError, EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, ResultReady, Say, Warn
from settle.base.files import JsonObject
from settle.base.python_command import extra_command
from settle.base.statistics import Interval, bootstrap_mean
from settle.base.words.amounts import count, duration
from settle.data.layouts import Message, read_turns
from settle.evaluate.compare.candidate import without_thoughts
from settle.evaluate.compare.cases import Case
from settle.experiment.arm import CACHE_SHARE, Reply, ReplyRecord, digest, model_hashes
from settle.infer.child_process import Json
from settle.infer.client import JSON_SPACING, Fence, Turn
from settle.infer.engine import Engine, at_once
from settle.infer.table import Row, Table, TableRow, read_table
from settle.jobs.kept_work import stoppable
from settle.library.catalogue import recommended_sampling
from settle.library.facts import read_facts
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.machine import memory

MOST_AT_ONCE = 8  # answers: on a processor, a step of eight costs little more than a step of one
CONTEXT = 4096  # tokens of a prompt and its answer, where nothing else is asked for
MEASURED = 2  # answers per slot that the forecast is made from
PROMPT, MESSAGES, ANSWER, SAMPLE, ERROR = "prompt", "messages", "completion", "sample", "error"  # columns
_PLACE = re.compile(r"\{([^{}\n]+)\}")


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn.

    samples: answers of each prompt. temperature: None takes the likeliest tokens for one sample, and what is
    recommended for the model for several. schema: that the answer, as JSON, fits. think: let a reasoning model write
    its thoughts, which are left out. context: tokens of a prompt and its answer.
    """

    samples: int = 1
    max_tokens: int = 512
    temperature: float | None = None
    seed: int = 0
    schema: JsonObject | None = None
    think: bool = False
    context: int | None = None
    threads: int | None = None


class Prompt(NamedTuple):
    """What a row asks, or why it asks nothing."""

    case: Case | None
    problem: str = ""


class Attempt(NamedTuple):
    """An answer, or why there is none."""

    reply: Reply | None
    problem: str = ""


class BatchModel:
    """A model in llama.cpp that answers many prompts. Use it as a context manager; it is loaded when it is first asked.

    Raises UsageError for a schema without the extra that checks it, and what `Engine` raises.
    """

    def __init__(self, ref: ModelRef, drawing: Drawing) -> None:
        self.name, self._ref, self._drawing = ref.name, ref, drawing
        facts = read_facts(ref.weights)
        self.context = min(drawing.context or CONTEXT, facts.context)
        per_slot = max(1, facts.bytes_per_token * self.context)
        self.at_once = max(1, min(MOST_AT_ONCE, int(CACHE_SHARE * memory().available) // per_slot))
        drawn = asdict(replace(drawing, samples=min(drawing.samples, 2), context=self.context, threads=None))
        self.record = ReplyRecord(digest([model_hashes(ref), version("xllamacpp"), drawn]))
        self._fits = _validator(drawing.schema) if drawing.schema is not None else None
        self._opened: tuple[Engine, Fence] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the model's process; answers in flight end with it. Calling it twice is harmless."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()

    def load(self) -> Engine:
        """Return the process, started if need be."""
        return self._open()[0]

    def _open(self) -> tuple[Engine, Fence]:
        if self._opened is None:
            ref, drawing = self._ref, self._drawing
            engine = Engine(ref.weights, self.context, drawing.threads, adapter=ref.adapter, slots=self.at_once)
            engine.start()
            self._opened = engine, Fence(engine, enable_thinking=drawing.think)
        return self._opened

    def known(self, case: Case, sample: int) -> Reply | None:
        """Return an answer that was made before."""
        return self.record.known.get(self._key(case, sample))

    def answer(self, case: Case, sample: int) -> Reply:
        """Return one answer, and remember it. Raises DataError where there is none, EngineError when llama.cpp dies."""
        if (reply := self.known(case, sample)) is not None:
            return reply
        engine, drawing, began = self.load(), self._drawing, time.monotonic()
        prompt = self._prompt(case)
        room = min(drawing.max_tokens, self.context - len(prompt))
        if room < 1:
            raise DataError(
                f"the prompt has {len(prompt):,} tokens, and prompt and answer together may have {self.context:,}",
                "raise --context, or shorten it",
            )
        try:
            whole = engine.answer(prompt, room, seed=drawing.seed + sample, sampling=self._sampling(engine))
        except EngineError as e:
            if engine.alive():
                raise DataError(e.what, e.fix) from None
            raise
        text = without_thoughts(whole.text) if engine.takes_turns else whole.text
        if self._fits and (why := self._fits(text)):
            raise DataError(f"the answer {'was cut and ' if not whole.ended else ''}{why}", "raise --max-tokens")
        reply = Reply(text, whole.ended, True, len(prompt), whole.tokens, time.monotonic() - began)
        self.record.add({self._key(case, sample): reply})
        return reply

    def answers(self, prompts: Sequence[Prompt], on_progress: Callable[[int], object]) -> Iterator[list[Attempt]]:
        """Yield the attempts at each prompt, in order. Raises what `answer` raises, except DataError."""
        samples = self._drawing.samples

        def attempt(item: tuple[Prompt, int]) -> Attempt:
            (case, problem), sample = item
            if case is None:
                return Attempt(None, problem)
            try:
                return Attempt(self.answer(case, sample))
            except DataError as e:
                return Attempt(None, e.what)

        wanted = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        if any(case is not None and self.known(case, sample) is None for (case, _), sample in wanted):
            self.load()
        attempts = at_once(attempt, wanted, self.at_once, self.close)
        for number in range(1, len(prompts) + 1):
            yield list(itertools.islice(attempts, samples))
            on_progress(number)

    def _key(self, case: Case, sample: int) -> str:
        return digest([case.messages, case.tools, case.prompt, sample])

    def _prompt(self, case: Case) -> list[int]:
        """Return the ids of a prompt. No text in it can end its turn, except where tools are rendered with it."""
        engine, fence = self._open()
        if not engine.takes_turns:
            if case.prompt is None:
                raise DataError(
                    f"{self.name} has no chat template, so it takes one text and no turns", "give `prompt` rows"
                )
            return engine.plain(case.prompt)
        if case.tools:
            return engine.turns(case.messages, case.tools)
        return fence.ids([Turn(str(m["role"]), [str(m["content"])]) for m in case.messages])

    def _sampling(self, engine: Engine) -> JsonObject:
        drawing = self._drawing
        schema = {"json_schema": {**drawing.schema, **JSON_SPACING}} if drawing.schema is not None else {}
        if drawing.temperature is None and drawing.samples > 1:
            return {**recommended_sampling(engine.metadata, engine.takes_turns).settings, **schema}
        temperature = drawing.temperature or 0.0
        return {"temperature": temperature, **schema}


def _validator(schema: JsonObject) -> Callable[[str], str]:
    """Return what says why a text is not JSON of a schema, "" where it is. Raises UsageError."""
    try:
        import jsonschema_rs
    except ModuleNotFoundError:
        raise UsageError("--schema needs jsonschema-rs", extra_command("serve")) from None
    try:
        validator = jsonschema_rs.validator_for(dict(schema))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as e:
        raise UsageError(f"the schema is not a JSON Schema: {str(e)[:200]}", "correct it") from None

    def why(text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "is no JSON"
        error = next(iter(validator.iter_errors(value)), None)
        return f"does not fit the schema: {error.message[:200]}" if error else ""

    return why


# Rows as prompts


def row_prompt(row: TableRow, number: int, template: str | None = None, system: str | None = None) -> Prompt:
    """Return what is asked of a row; a last answer in its `messages` is left out."""
    values = row.values
    if row.problem:
        return Prompt(None, row.problem)
    messages: list[Message] = []
    if template is not None:
        messages = [{"role": "user", "content": _filled(template, values)}]
    elif MESSAGES in values:
        try:
            messages = read_turns(values[MESSAGES])
        except DataError as e:
            return Prompt(None, e.what)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    elif PROMPT in values or len(values) == 1:
        messages = [{"role": "user", "content": str(values.get(PROMPT, next(iter(values.values()))))}]
    else:
        return Prompt(None, "the row has no prompt: give `prompt` or `messages`, or --template")
    if not messages or not str(messages[-1]["content"]).strip():
        return Prompt(None, "the prompt is empty")
    text = str(messages[0]["content"]) if len(messages) == 1 and not system else None
    if system:
        messages = [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]
    return Prompt(Case(number, "", tuple(messages), prompt=text))


def _filled(template: str, values: Row) -> str:
    def value(match: re.Match[str]) -> str:
        return str(values.get(match[1], match[0]))

    return _PLACE.sub(value, template)


def require_places(template: str, columns: Sequence[str]) -> None:
    """Raise UsageError for a template that names no column, or something like a column that is none."""
    names = _PLACE.findall(template)
    unknown = [name for name in names if name not in columns and re.fullmatch(r"[\w-]+", name)]
    if unknown or not set(names) & set(columns):
        what = f"the template names {{{unknown[0]}}}" if unknown else "the template names no column"
        raise UsageError(f"{what}; the rows have {', '.join(columns[:8])}", "write {COLUMN} where its value belongs")


# The job


def complete(
    model: str, prompts: Sequence[str | Sequence[Message]], drawing: Drawing, events: Events
) -> list[list[str]]:
    """Return the answers to each prompt, a text or messages, `drawing.samples` of each. Raises SettleError.

    Raises DataError for a prompt that has no answer; the answers of the others are kept.
    """
    rows = [TableRow({PROMPT: prompt} if isinstance(prompt, str) else {MESSAGES: list(prompt)}) for prompt in prompts]
    asked = [row_prompt(row, number) for number, row in enumerate(rows, 1)]
    answers = []
    with BatchModel(resolve_gguf(model), drawing) as batch:
        for number, attempts in enumerate(batch.answers(asked, _progress(events, len(asked))), 1):
            if problem := next((attempt.problem for attempt in attempts if attempt.reply is None), ""):
                raise DataError(f"prompt {number} has no answer: {problem}", "correct it, or leave it out")
            answers.append([attempt.reply.text for attempt in attempts if attempt.reply])
    return answers


def _progress(events: Events, total: int) -> Callable[[int], object]:
    return lambda done: events.emit(Progress(what="generate", done=done, total=total, unit="rows"))


def generate(
    model: str,
    rows: Path,
    drawing: Drawing,
    events: Events,
    template: str | None = None,
    system: str | None = None,
    out: Path | None = None,
) -> int:
    """Answer each row of a table and write it with the answers; return the exit code, 3 where there is none.

    out: a file, stdout when None. Raises SettleError.
    """
    ref, table = resolve_gguf(model), read_table(rows)
    if template is not None:
        require_places(template, table.columns)
    prompts = [row_prompt(row, number, template, system) for number, row in enumerate(table.rows, 1)]
    with BatchModel(ref, drawing) as batch, stoppable("what was answered", events):
        return _answer_rows(batch, table, prompts, drawing, out, events)


def _answer_rows(
    batch: BatchModel, table: Table, prompts: Sequence[Prompt], drawing: Drawing, out: Path | None, events: Events
) -> int:
    cases, wanted = [prompt.case for prompt in prompts if prompt.case], len(prompts) * drawing.samples
    new = sum(batch.known(case, sample) is None for case in cases for sample in range(drawing.samples))
    if before := len(cases) * drawing.samples - new:
        events.emit(Say(text=f"{before:,} of {before + new:,} answers are known and not made again"))
    pace, began = _Pace(batch.at_once, new, events), time.monotonic()
    problem, failed, cut, tokens = "", 0, 0, 0
    # of the prompts that a template made, which make the rows examples
    added = [PROMPT] if PROMPT not in table.columns and all(case.prompt for case in cases) else []
    several = [SAMPLE] if drawing.samples > 1 else []
    with table.writer(out, [*added, *several, ANSWER, ERROR], "generated", events) as write:
        answers = batch.answers(prompts, _progress(events, len(prompts)))
        for row, (case, _), attempts in zip(table.rows, prompts, answers, strict=True):
            for sample, (reply, why) in enumerate(attempts):
                cells: Json = {SAMPLE: sample} if several else {}
                if added and case:
                    cells[PROMPT] = case.prompt
                if reply is None:
                    failed, problem = failed + 1, problem or why
                    write(row.values, {**cells, ERROR: why})
                else:
                    cut, tokens = cut + (not reply.ended), tokens + reply.written
                    write(row.values, {**cells, ANSWER: reply.text})
                    pace.add(reply)
    if failed:
        events.emit(Warn(text=f"{failed:,} of {wanted:,} answers are missing: {problem}"))
    if cut:
        events.emit(Warn(text=f"{cut:,} answers were cut at {drawing.max_tokens} tokens; raise --max-tokens"))
    result: Json = {"model": batch.name, "rows": len(prompts), "answers": wanted - failed, "known": before}
    result |= {"failed": failed, "cut": cut, "tokens": tokens, "seconds": time.monotonic() - began}
    events.emit(ResultReady(result=result | {"forecast": pace.forecast_json()} | ({"file": str(out)} if out else {})))
    if out:
        can_be_learned = not failed and (added or PROMPT in table.columns)
        lead = f"; `settle tune MODEL {out}` learns from them" if can_be_learned else ""
        events.emit(Say(text=f"{count(wanted - failed)} answers in {out}{lead}"))
    return 0 if wanted > failed else 3


class _Pace:
    """Says how long the answers will take, once the first ones are there."""

    def __init__(self, at_once: int, new: int, events: Events) -> None:
        self._at_once, self._new, self._events = at_once, new, events
        self._seconds: list[float] = []
        self.forecast: Interval | None = None

    def add(self, reply: Reply) -> None:
        self._seconds.append(reply.seconds)
        measured = MEASURED * self._at_once
        if self.forecast is None and len(self._seconds) == measured and self._new > 2 * measured:
            each = bootstrap_mean(self._seconds)
            scale = self._new / self._at_once
            self.forecast = Interval(each.value * scale, each.low * scale, each.high * scale)
            low, high = duration(self.forecast.low), duration(self.forecast.high)
            expected = f"{self._new:,} answers will take about {duration(self.forecast.value)} ({low} to {high})"
            self._events.emit(Say(text=expected))

    def forecast_json(self) -> object:
        return self.forecast.to_json() if self.forecast else None
