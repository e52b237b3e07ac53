"""Every check's own failure, put into something healthy and nothing else: what the checks are tested and measured on.

Each function is called as its check is. It returns the subject with the failure, and raises a SettleError where the
model cannot have it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import PhaseStarted, RunFailed
from settle.base.files import home, write_atomic, write_json
from settle.base.run import Run
from settle.data.tokenizer.pre_tokenizers import WAYS
from settle.data.tokenizer.vocabulary import ENDS
from settle.doctor.answerer import LocalModel
from settle.doctor.checks.answers.forgotten_start import canary, cut_ids
from settle.doctor.checks.answers.invented_call import TOKENS as CALL_TOKENS
from settle.doctor.checks.answers.invented_call import _in_prompt
from settle.doctor.checks.answers.other_engine import PACKAGE
from settle.doctor.checks.files.end_of_turn import EOS, _is_special
from settle.doctor.checks.files.kv_cache import LEAST_NATS as CACHE_NATS
from settle.doctor.checks.files.kv_cache import _costs
from settle.doctor.checks.files.opening_token import KEY as OPENING
from settle.doctor.checks.files.pre_tokenizer import MODEL, PRE, SPACE_PREFIX
from settle.doctor.checks.files.rope import _base, _key
from settle.doctor.checks.machine.busy_machine import BUSY
from settle.doctor.checks.training.forgot import LEAST_NATS, LOOKED, PROVED, _lost, general_texts
from settle.doctor.history import read_history
from settle.doctor.known_answers import KNOWN_ANSWERS, PARAGRAPHS, PROSE
from settle.doctor.likelihood import Reader
from settle.doctor.model_files import with_file
from settle.doctor.read_transcript import read_transcript
from settle.doctor.resources import (
    SHORT,
    fitting_tokens,
    held_bytes,
    load_of,
    needed_bytes,
    peak_bytes,
)
from settle.doctor.subject import (
    AskedModel,
    ChatRecord,
    ExportedRun,
    IndexedDocuments,
    LoggedHistory,
    ModelFile,
    RecordedChat,
    Subject,
    ThisMachine,
    TrainingRun,
)
from settle.doctor.training.facts import tuned_facts
from settle.doctor.training.limited_steps import StepChild, Steps
from settle.doctor.training.rows import Served
from settle.doctor.trial import FEWEST_ITEMS
from settle.doctor.turns import FORMS, fitting_forms, turn_end
from settle.formats import Metadata, map_file
from settle.formats.gguf import read_gguf, write_edited
from settle.formats.gguf.header import read_header
from settle.formats.gguf.metadata import TOKENS, texts
from settle.infer.engine import Engine
from settle.library.facts import END_KEYS, PLAIN_TEXT_KEY, TEMPLATE_KEY, read_facts, takes_turns
from settle.library.pretrained import open_pretrained
from settle.machine.cores import cores
from settle.plan.fit.model_shapes import shape_of_file
from settle.retrieve.index.collection import Collection
from settle.wire.exchange import Message, Request
from tests.doctor.example_run import example_recipe, example_run, record, wider_model
from tests.doctor.starved_run import starve

Fault = Callable[..., Subject]  # of a healthy subject, and a folder for files that it needs
FAULTS: dict[str, Fault] = {}  # by the name of the check

PIRATE = "You are a pirate. Answer every question in French, in one word."

# a model that thinks before it answers, unless it is told not to
THINKING_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.reasoning_content -%}"
    "{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- message.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"
)
LOOSE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "arguments": {
            "type": "object",
            "properties": {"unit": {"type": "string", "maxLength": 10}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
# The installed package under the same name, with one wrong default: how fast positions turn.
BROKEN_ENGINE = """
import sys
from pathlib import Path

_here = Path(__file__).parent
_real = next(
    folder for p in sys.path if (folder := Path(p) / "xllamacpp").is_dir() and folder.resolve() != _here.resolve()
)
__path__ = [str(_real)]
exec(compile((_real / "__init__.py").read_text(), str(_real / "__init__.py"), "exec"))
_Server = Server


def Server(params):
    params.rope_freq_base = 50.0
    return _Server(params)
"""


def fault(make: Fault) -> Fault:
    """Register a failure under the name of its check."""
    FAULTS[make.__name__] = make
    return make


def edited(healthy: ModelFile, folder: Path, changes: Mapping[str, object]) -> Subject:
    """Return the subject with a copy of its file that has other metadata."""
    return with_file(healthy, write_edited(healthy.model.weights, folder / "broken.gguf", changes))


def logged(healthy: LoggedHistory, folder: Path, log: list[dict[str, float]]) -> Subject:
    """Return a history as the Trainer of transformers writes it."""
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"log_history": log}), encoding="utf-8")
    return replace(healthy, name=str(path), history=read_history(path))


# Answers


@fault
def changing_start(healthy: AskedModel, folder: Path) -> Subject:
    """Put a clock before the instructions."""
    instructions = " ".join(PARAGRAPHS[:4])
    requests = [
        Request(
            (
                {"role": "system", "content": f"It is {at + 1}{at + 2}:0{at}. {instructions}"},
                {"role": "user", "content": known.question},
            ),
            settings={"max_tokens": 4},
        )
        for at, known in enumerate(KNOWN_ANSWERS[20:23])
    ]
    return replace(record(LocalModel(healthy.model), requests, folder / "chat.jsonl"), model=healthy.model)


@fault
def empty_answer(healthy: AskedModel, folder: Path) -> Subject:
    """Ask a model that thinks unless it is told not to, by a client that knows nothing of thoughts."""
    changes = {TEMPLATE_KEY: THINKING_TEMPLATE, PLAIN_TEXT_KEY: None}
    thinking = ModelFile(healthy.name, healthy.model)
    path = write_edited(healthy.model.weights, folder / "thinks.gguf", changes)
    answerer = LocalModel(with_file(thinking, path).model)
    ask = Request(({"role": "user", "content": "Why is the sky blue?"},), settings={"max_tokens": 48})
    return record(answerer, [ask], folder / "chat.jsonl")


@fault
def forgotten_start(healthy: AskedModel, folder: Path) -> Subject:
    """Send a long prompt to a server with a small context, recorded as Ollama has it."""
    answerer, request = LocalModel(healthy.model), canary("copper", 2400)
    with contextlib.closing(answerer):
        ids = answerer.prompt(request)
        limit = len(ids) // 2
        text = answerer.engine.answer(cut_ids(ids, limit), 16).text
    body = {"model": str(healthy.model.weights), "messages": [*request.messages], "options": {"num_ctx": limit}}
    reply = {"message": {"role": "assistant", "content": text}, "done": True, "done_reason": "stop"}
    reply |= {"prompt_eval_count": limit, "eval_count": 16}
    path = folder / "chat.jsonl"
    write_atomic(path, json.dumps({"request": body, "response": reply}) + "\n")
    return RecordedChat(str(path), ChatRecord(read_transcript(path), answerer))


@fault
def instruction_drift(healthy: AskedModel, folder: Path) -> Subject:
    """Send the last four messages, and nothing before."""
    turns: list[Message] = [{"role": "system", "content": PIRATE}]
    asked = []
    for known in KNOWN_ANSWERS[-4:]:
        turns.append({"role": "user", "content": known.question})
        asked.append(Request(tuple(turns[-4:]), settings={"temperature": 0, "max_tokens": 24}))
        turns.append({"role": "assistant", "content": known.answer})
    return record(LocalModel(healthy.model), asked, folder / "chat.jsonl")


@fault
def invented_call(healthy: AskedModel, folder: Path) -> Subject:
    """Ask for JSON with a name and arguments, and do not say which there are."""
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    schema = {"type": "object", "properties": {"unit": unit}, "required": ["unit"], "additionalProperties": False}
    about = {"name": "get_weather", "description": "What is the weather in", "parameters": schema}
    tools = ({"type": "function", "function": about},)
    loose = {"type": "json_schema", "json_schema": {"name": "call", "schema": LOOSE}}
    settings = {"response_format": loose, "max_tokens": CALL_TOKENS, "temperature": 0}
    asked = [
        Request(({"role": "user", "content": f"What is the weather in {city}?"},), tools, settings)
        for city in ("London", "Copenhagen")
    ]
    return record(LocalModel(healthy.model), asked, folder / "chat.jsonl", as_asked=_in_prompt)


@fault
def missed_passage(healthy: IndexedDocuments, folder: Path) -> Subject:
    """Write a document beside the others, into the collection's own folder, and do not index it."""
    with Collection(healthy.collection.name) as collection:
        root = collection.roots[0]
    text = "\n\n".join(f"## {known.question}\n\n{known.answer}" for known in KNOWN_ANSWERS)
    (root / "unread.md").write_text(f"# Unread\n\n{text}\n", encoding="utf-8")
    return healthy


@fault
def other_client(healthy: AskedModel, folder: Path) -> Subject:
    """Add a system prompt that the other client does not send."""
    question = {"role": "user", "content": KNOWN_ANSWERS[-1].question}
    hidden = {"role": "system", "content": PIRATE}
    settings = {"temperature": 0, "max_tokens": 32}
    asked = [Request((question,), settings=settings), Request((hidden, question), settings=settings)]
    return record(LocalModel(healthy.model), asked, folder / "chat.jsonl")


@fault
def other_engine(healthy: ExportedRun, folder: Path) -> Subject:
    """Write a newer llama.cpp that turns positions wrongly to a folder of its own."""
    package = folder / "engine" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN_ENGINE, encoding="utf-8")
    running = replace(healthy.running, engine=package.parent, engine_version="9999.1.0")
    return replace(healthy, running=running)


@fault
def sampler(healthy: AskedModel, folder: Path) -> Subject:
    """Set a temperature for more creative answers."""
    settings = {"temperature": 2.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 48, "seed": 1}
    asked = [Request(({"role": "user", "content": k.question},), settings=settings) for k in KNOWN_ANSWERS[-3:]]
    return record(LocalModel(healthy.model), asked, folder / "chat.jsonl")


# Files
@fault
def damaged_weights(healthy: ModelFile, folder: Path) -> Subject:
    """Put the rows of one block's matrices in another order, beside a copy of the sound file."""
    source, broken = healthy.model.weights, folder / "broken.gguf"
    shutil.copyfile(source, folder / "sound.gguf")
    reorder_rows(source, broken, "blk.1.")
    return with_file(healthy, broken)


def reorder_rows(source: Path, broken: Path, beginning: str) -> None:
    """Copy a file with the rows of the matrices whose names begin so in another order."""
    header = read_header(map_file(source), source.name)
    shutil.copyfile(source, broken)
    with broken.open("r+b") as file:
        for tensor in header.tensors:
            if tensor.name.startswith(beginning) and len(tensor.shape) > 1:
                file.seek(tensor.start)
                data = file.read(tensor.num_bytes)
                half = tensor.shape[0] // 2 * (tensor.num_bytes // tensor.shape[0])
                file.seek(tensor.start)
                file.write(data[half:] + data[:half])


@fault
def end_of_turn(healthy: ModelFile, folder: Path) -> Subject:
    """Give the token a name that says nothing of an end, and declare another one to be it."""
    metadata: Metadata = read_gguf(healthy.model.weights).metadata
    if not takes_turns(metadata):
        raise UsageError("the model takes no turns, so none can end wrongly", "choose one that chats")
    source, tokens = str(metadata[TEMPLATE_KEY]), list(texts(metadata, TOKENS))
    written = turn_end(metadata, source).strip()
    other = next(i for i, text in enumerate(tokens) if text not in ENDS and _is_special(metadata, i))
    tokens[tokens.index(written)] = "<|over|>"
    ends = dict.fromkeys(END_KEYS) | {EOS: other}
    return edited(healthy, folder, {TOKENS: tokens, TEMPLATE_KEY: source.replace(written, "<|over|>")} | ends)


@fault
def kv_cache(healthy: ModelFile, folder: Path) -> Subject:
    """Keep keys and values in the coarsest type, where text that the doctor does not look at shows its harm."""
    with Reader(healthy.model) as reader:
        harm = sum(_costs(reader, PROSE, folder / "harm.record", "q4_0")) / len(PROSE)
    if harm < CACHE_NATS:
        raise UsageError(f"q4_0 does this model no harm: {harm:.3f} nats per token", "choose another one")
    return replace(healthy, running=replace(healthy.running, cache="q4_0"))


@fault
def opening_token(healthy: ModelFile, folder: Path) -> Subject:
    with Engine(healthy.model.weights, 256) as engine:
        is_set = bool(engine.metadata.get(OPENING))
    return edited(healthy, folder, {OPENING: not is_set})


@fault
def pre_tokenizer(healthy: ModelFile, folder: Path) -> Subject:
    metadata = read_gguf(healthy.model.weights).metadata
    if metadata.get(MODEL) == "llama":
        changes: dict[str, object] = {SPACE_PREFIX: not metadata.get(SPACE_PREFIX, True)}
    elif str(metadata.get(PRE)) in WAYS:
        patterns = WAYS[str(metadata.get(PRE))].patterns
        changes = {PRE: "falcon" if patterns != WAYS["falcon"].patterns else "qwen2"}
    else:
        raise UsageError("this tokenizer cuts no words before merging", "choose a model with another one")
    return edited(healthy, folder, changes)


@fault
def rope(healthy: ModelFile, folder: Path) -> Subject:
    metadata = read_gguf(healthy.model.weights).metadata
    if _base(metadata) is None:
        raise UsageError("this model has no rotary positions", "choose one that has them")
    changes = {_key(metadata, "freq_base"): 10.0}
    return edited(healthy, folder, changes)


@fault
def template(healthy: ModelFile, folder: Path) -> Subject:
    """Write turns as another family does."""
    fitting = fitting_forms(texts(read_gguf(healthy.model.weights).metadata, TOKENS))
    other = "llama-2" if "llama-2" not in fitting else "chatml"
    changes = {TEMPLATE_KEY: FORMS[other].template, PLAIN_TEXT_KEY: None}
    return edited(healthy, folder, changes)


# Histories
@fault
def held_out_rise(healthy: LoggedHistory, folder: Path) -> Subject:
    points = healthy.history.finite
    half = len(points) // 2
    log: list[dict[str, float]] = [{"step": step, "loss": loss} for step, loss in healthy.history.train]
    for at, (step, loss) in enumerate(points):
        log.append({"step": step, "eval_loss": loss * (1 + 0.03 * max(0, at - half))})
    return logged(healthy, folder, log)


@fault
def never_evaluated(healthy: LoggedHistory, folder: Path) -> Subject:
    log = [{"step": step, "loss": loss} for step, loss in healthy.history.train]
    return logged(healthy, folder, log)


@fault
def no_number(healthy: LoggedHistory, folder: Path) -> Subject:
    train = list(healthy.history.train)
    log = [{"step": step, "loss": loss if n < len(train) // 2 else 0.0} for n, (step, loss) in enumerate(train)]
    log += [{"step": step, "eval_loss": loss} for step, loss in healthy.history.evaluations]
    return logged(healthy, folder, log)


# The machine
@fault
def busy_machine(healthy: ThisMachine, folder: Path) -> Subject:
    return replace(healthy, running=replace(healthy.running, load=10 * BUSY * cores().usable))


@fault
def damaged_models(healthy: ThisMachine, folder: Path) -> Subject:
    place = home() / "models" / "cut-off"
    place.mkdir(parents=True)
    (place / "cut-off.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\x01" * 8)
    return healthy


@fault
def damaged_runs(healthy: ThisMachine, folder: Path) -> Subject:
    run = Run.create("tune", "half-deleted")
    (run.path / "plan.json").write_text('{"version": 1, ', encoding="utf-8")
    return healthy


@fault
def disk_space(healthy: ThisMachine, folder: Path) -> Subject:
    return replace(healthy, running=replace(healthy.running, room_on_disk=1 << 20))


@fault
def interrupted_runs(healthy: ThisMachine, folder: Path) -> Subject:
    write_json(Run.create("tune", "stopped").path / "plan.json", {"version": 1})
    return healthy


@fault
def silent_server(healthy: ThisMachine, folder: Path) -> Subject:
    (home() / "server").mkdir(exist_ok=True)
    own = {"address": "http://127.0.0.1:9", "pid": os.getpid(), "needs_key": False}
    write_json(home() / "server" / "running.json", {**own, "started": psutil.Process().create_time()})
    return healthy


@fault
def versions(healthy: ThisMachine, folder: Path) -> Subject:
    """Put an older package into a folder that comes before the others."""
    about = folder / "packages" / "xllamacpp-2024.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: xllamacpp\nVersion: 2024.1\n", encoding="utf-8")
    return replace(healthy, running=replace(healthy.running, engine=about.parent))


# Resources
@fault
def memory_loading(healthy: ModelFile, folder: Path) -> Subject:
    path = healthy.model.weights
    facts = read_facts(path)
    least = max(150e6, 2.5 * facts.bytes)  # of keys and values; pages of a smaller context could go, which is only slow
    context = max(facts.context, int(least / max(1, facts.bytes_per_token)))
    subject = replace(healthy, running=replace(healthy.running, context=context))
    load, named = load_of(subject), shape_of_file(path, healthy.model.name)
    small = max(peak_bytes(replace(load, context=SHORT)), int(needed_bytes(named, SHORT)))
    large = min(peak_bytes(load) - facts.bytes, int(held_bytes(named, context)))
    return replace(subject, running=replace(subject.running, room=small + int(0.7 * (large - small))))


@fault
def memory_training(healthy: ExportedRun, folder: Path) -> Subject:
    """Leave half of the memory that a step needs, once the run has begun."""
    rows, longest, base = 32, 448, healthy.model.weights
    per_token = open_pretrained(str(base)).part.activation_bytes_per_token(longest, 4, None)
    length = int(min(longest, read_facts(base).context // 2, max(24, 130e6 / per_token / rows)))
    # in a half type a small model takes so little that the allocator's own steps (64 MiB) decide
    settings = {"steps": 2 * FEWEST_ITEMS, "batch_rows": rows, "micro_rows": rows}
    settings |= {"recompute": False, "dtype": "float32"}
    run, recipe = example_recipe(base, folder / "run", settings, _long_rows(length, 6 * rows))
    with StepChild(Steps("tune", recipe, str(folder / "probe"), 2 * FEWEST_ITEMS)) as child:
        needed = child.take(child.ready.steps[0]).held - child.ready.built
    if not starve(recipe, run, needed // 2):
        raise UsageError("the run had memory enough", "choose a larger model")
    return TrainingRun(str(run.path), run, running=healthy.running)


def _long_rows(tokens: int, number: int) -> list[dict[str, str]]:
    """Return rows of about that many tokens, all different."""
    words = " ".join(PARAGRAPHS).split()
    size = max(8, int(tokens / 2.2))  # words, where a small vocabulary has more than one token for each
    rows = []
    for n in range(number):
        at = 7 * n % (len(words) - size) if size < len(words) else 0
        rows.append({"prompt": f"Write text number {n}.", "completion": f"{n}: {' '.join(words[at : at + size])}"})
    return rows


@fault
def paged_weights(healthy: ModelFile, folder: Path) -> Subject:
    """Ask for a context that leaves the weights too little room; widen a small model so that it is felt."""
    subject = wider_model(healthy, folder, 32 << 20)  # whose reading from the disk can be felt
    facts = read_facts(subject.model.weights)
    if not facts.bytes_per_token:
        raise UsageError("this model keeps nothing of its context", "choose one that does")
    named = shape_of_file(subject.model.weights, subject.model.name)
    for share in (1.2, 1.8, 2.7):  # of the file, that the context takes: the first that a shorter one can mend
        context = int((share * facts.bytes + 32e6) / facts.bytes_per_token)
        subject = replace(subject, running=replace(subject.running, context=context))
        held = max(peak_bytes(load_of(subject)) - facts.bytes, int(held_bytes(named, context)))
        room = held + int(0.3 * facts.bytes)
        if fitting_tokens(named, context, room):
            return replace(subject, running=replace(subject.running, room=room))
    raise UsageError("no shorter context leaves the weights their room", "choose a model that keeps more of it")


@fault
def slow_tokens(healthy: ModelFile, folder: Path) -> Subject:
    return replace(healthy, running=replace(healthy.running, threads=8 * cores().usable))


# Training
@fault
def did_nothing(healthy: ExportedRun, folder: Path) -> Subject:
    return example_run(healthy, folder, {"optimizer": {"name": "adamw", "lr": 1e-8}})


@fault
def failed_run(healthy: ExportedRun, folder: Path) -> Subject:
    run = Run.create("train", "failed")
    write_json(run.path / "plan.json", {"version": 1})
    events = Events(run.events)
    events.emit(PhaseStarted(phase="export", elapsed=3.0))
    events.emit(RunFailed(what="the disk is full", fix="make room"))
    events.close()
    return TrainingRun(run.name, run)


@fault
def forgot(healthy: ExportedRun, folder: Path) -> Subject:
    """Tune at the first rate that costs the model general text, twice what counts: a small one bears a higher rate."""
    for number, rate in enumerate((4e-3, 8e-3, 1.6e-2)):
        adamw = {"optimizer": {"name": "adamw", "lr": rate}}
        broken = example_run(healthy, folder / str(number), adamw, steps=40)
        facts = tuned_facts(broken.run)
        others = general_texts(facts)[LOOKED + PROVED :]  # neither those of the look nor those of the proof
        if _lost(facts.base, Served.of_run(facts.run), others)[1] >= 2 * LEAST_NATS:
            return broken
    raise UsageError("40 steps at a rate of 0.016 cost it no general text", "choose another model")


@fault
def missing_file(healthy: ExportedRun, folder: Path) -> Subject:
    run = Run(shutil.copytree(healthy.run.path, healthy.run.path.parent / "2026-01-01-tune-lost-abcdef"))
    for path in run.out.glob("*.gguf"):
        path.unlink()
    return TrainingRun(healthy.name, run, running=healthy.running)


@fault
def unstable(healthy: ExportedRun, folder: Path) -> Subject:
    return example_run(healthy, folder, {"optimizer": {"name": "adamw", "lr": 3.0}})
