"""settle distill: a small model learns from a large one, until it has settled."""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from settle.base.errors import UsageError
from settle.base.events import Progress, Say
from settle.base.files import home, read_json, write_json
from settle.base.run.result import Result
from settle.data.batches import pack_rows
from settle.data.rows.prepare import RowCorpus, prepare_rows, prepared_rows
from settle.data.settings import RowSettings
from settle.data.tokenizer.vocabulary import require_same_tokenizer
from settle.evaluate.compare.candidate import LiveModel
from settle.evaluate.compare.cases import cases
from settle.evaluate.distillation import answer_all, learned
from settle.evaluate.speculative import Pair, measure_pair
from settle.formats.gguf import export_gguf
from settle.infer.scorer import Scorer
from settle.jobs.job import RunJob
from settle.jobs.proof_stages import proof, scores
from settle.jobs.settings import DistillSettings
from settle.jobs.training_stages import build, earlier_session, judge, loop, restored_data, result
from settle.jobs.tuning_stages import TuningContext, again, export, forecast, plan, probe
from settle.library.convert import as_gguf
from settle.library.pretrained import open_pretrained
from settle.library.reference import Proposal
from settle.library.resolve import resolve
from settle.library.run_models import record_draft
from settle.machine.speed import ceiling
from settle.model.pretrained import Pretrained
from settle.plan.training_plan import shapes
from settle.shrink.prunable_model import PrunableModel
from settle.shrink.pruners import Pruned
from settle.shrink.student_init import PruningWork, fresh, narrower, read_shape, shorter, shrunk
from settle.train.live_run import LiveRun, blocks, open_base
from settle.train.objectives.distill import Distill
from settle.train.teacher import windows_of

STUDENT, RECORD = "student", "teacher"  # folders of a run: the student's first weights, the teacher's distributions
PIECE_TOKENS = 512  # longest piece of a plain text; rows of turns may be longer
COMPARED_IN_FP32 = 2.0  # times slower than an evaluation, which computes in half a type where that is faster
PRUNING_SHARE = 0.2  # of a time budget, for each pruner
# of what is left of it then, for the teacher's answers, and for recording what it says; of all of it, for a draft
ANSWERS_SHARE, RECORD_SHARE, DRAFT_TIME = 0.3, 0.3, 0.1
RECORD_PILOT = 3.0  # seconds after which the pace of recording is known
LAYER_EFFICIENCY = 0.4  # FLOP/s of a layer on short windows ÷ those of its products alone
PRUNING_ROWS = 32  # training rows on which a pruner sees what the teacher's parts do
PROMPT_TOKENS = 32  # of a plain text that a draft's measurement continues
DRAFT_SHARE = 6  # a draft keeps one block in so many
# AdamW's rates where every weight learns: of a student that is good already, that lost parts, or that is random
RATES: dict[str, dict[str, float]] = {
    "given": {"lr": 1e-4, "table_lr": 1e-4},
    "pruned": {"lr": 1e-3, "table_lr": 3e-4},
    "fresh": {"lr": 3e-3, "table_lr": 1e-2},
}


class _TooSlow(Exception):
    """Recording what the teacher says would take more than its share of the time."""


@dataclass
class DistillContext(TuningContext):
    settings: DistillSettings
    teacher: Pretrained = field(init=False)
    pair: Pair | None = None  # the draft model beside its teacher, measured

    def made(self) -> Result:
        made = read_json(self.made_file) if self.made_file.exists() else None
        student = {"name": self.tuning.base_name, "made": made}
        pair = {"pair": self.pair.to_json()} if self.pair else {}
        return super().made().model_copy(update={"student": student, **pair})

    def comparing(self, seconds_per_token: float) -> float:
        return super().comparing(seconds_per_token) + self.draft_seconds

    @property
    def draft_seconds(self) -> float:
        """What a time budget keeps for measuring a draft."""
        return DRAFT_TIME * (self.budget or 0.0) if self.settings.draft else 0.0

    def seconds_of(self, share: float) -> float | None:
        """Return this share of what is left of a time budget; None without one."""
        return None if self.budget is None else max(0.0, share * (self.budget - self.spending.total))

    def comparison_estimate(self, seconds_per_token: float) -> float:
        """Held-out rows are read twice, in fp32."""
        return 2 * COMPARED_IN_FP32 * self.plan.held_out_tokens * seconds_per_token

    @property
    def made_file(self) -> Path:
        """How the student was made from its teacher; absent when it was given."""
        return self.run.path / STUDENT / "made.json"


def teacher(c: DistillContext) -> None:
    """Open the teacher; a given student must share its tokenizer."""
    recorded = c.plan.objective_settings["teacher"] if c.record is not None else None
    c.teacher = open_pretrained(str(recorded or c.settings.teacher), c.events)
    if c.record is None and c.settings.student:
        student = open_pretrained(c.settings.student)
        require_same_tokenizer(c.teacher.tokenizer, student.tokenizer, (c.teacher.name, student.name))
        if student.source.sha256 == c.teacher.source.sha256 and c.settings.adapter.name == "full":
            raise UsageError(f"{student.name} is its own teacher", "give a smaller one")


def data(c: DistillContext) -> None:
    """Texts or examples as rows, with the teacher's own answers when they are wanted."""
    if c.record is not None and restored_data(c, prepared_rows(str(c.record["corpus"]))):
        return
    settings, most = c.settings, c.teacher.part.max_position_embeddings
    pieces = settings.rows.piece_tokens or min(PIECE_TOKENS, most)
    rows = settings.rows.model_copy(update={"piece_tokens": pieces})
    c.corpus = prepare_rows(settings.inputs, c.teacher.tokenizer, rows, c.events, most)
    if c.corpus.kind == "text" and settings.answers:
        raise UsageError("plain text has no prompts for the teacher to answer", "leave --answers out")
    wants_answers = settings.draft if settings.answers is None else settings.answers
    if wants_answers and c.corpus.kind != "text":
        c.corpus = _answered(c, c.corpus, rows)


def student(c: DistillContext) -> None:
    """Open or make the student in the run's folder, and choose what it learns by."""
    if c.record is not None:
        c.base = open_base(c.tuning)
        return
    c.base = open_pretrained(c.settings.student, c.events) if c.settings.student else _made_student(c)
    source = c.teacher.source
    recorded = {"record": str(c.run.path / RECORD)} if c.settings.cache else {}
    mapped = {"layer_map": layers} if (layers := _layer_map(c)) else {}
    of_run = {"teacher": str(source.path.resolve()), "teacher_sha256": source.sha256, **recorded, **mapped}
    objective = c.settings.objective.over(of_run)
    Distill.model_validate(objective.settings).resolved(c.base)  # refused before the teacher reads for hours
    way = "given" if c.settings.student else "fresh" if c.settings.fresh else "pruned"
    is_usual = c.settings.adapter.name == "full" and c.settings.optimizer.name == "adamw"
    optimizer = c.settings.optimizer.over(RATES[way] if is_usual else {})
    c.settings = c.settings.model_copy(update={"objective": objective, "optimizer": optimizer})


def cache(c: DistillContext) -> None:
    """With --cache: the teacher's distributions over all rows, recorded once."""
    if c.record is not None or not c.settings.cache:
        return
    windows = list(_windows(c.corpus))
    total, done = sum(map(len, windows)), 0
    seconds, began = c.seconds_of(RECORD_SHARE), time.monotonic()

    def on_tokens(tokens: int) -> None:
        nonlocal done
        done += tokens + 1
        c.events.emit(Progress(what="the teacher reads", done=done, total=total, unit="tokens"))
        spent = time.monotonic() - began
        if seconds is not None and spent > min(RECORD_PILOT, seconds) and spent * total > seconds * done:
            raise _TooSlow(f"recording what the teacher says would take {spent * total / done:,.0f} s")

    name, longest = c.teacher.name, max(map(len, windows))
    with as_gguf(c.teacher, c.run.path) as model, Scorer(model.path, longest, c.settings.threads) as scorer:
        facts = {"teacher": name, "sha256": c.teacher.source.sha256}
        try:
            scorer.likelihoods(windows, c.run.path / RECORD, facts, on_tokens)
        except _TooSlow as e:
            rest = {key: value for key, value in c.settings.objective.settings.items() if key != "record"}
            objective = replace(c.settings.objective, settings=rest)
            c.settings = c.settings.model_copy(update={"objective": objective})
            c.events.emit(Say(text=f"{e}, more than the time has room for: it is asked anew in every step instead"))


def compare(c: DistillContext) -> None:
    """Compare the student with its teacher on held-out rows, before it learned and after."""
    if not c.is_usable:
        return
    live = c.live
    assert isinstance(live.objective, Distill)
    before = {name: live.initial(name) for name in live.model.trainable()} if live.whole else None
    rows = blocks(c.plan, c.corpus.held_out, c.plan.held_out_tokens)  # as many as select, which were not read before
    best, name = c.outcome.best, c.teacher.name
    seconds = c.seconds_to_compare
    seconds = seconds and max(0.0, seconds - c.draft_seconds)
    nearness = learned(live.model, live.objective, rows, before, best, name, c.events, seconds)
    if not nearness.is_whole:
        c.leave_out_pace()
    c.comparison, c.compared = nearness.to_json(), nearness.card_lines()
    student = resolve(f"run:{c.run.path.name}").source
    c.add_files({"verdict": str(nearness.keep(c.run.out, c.base.source, student))})


def draft(c: DistillContext) -> None:
    """With --draft: the student's file as a draft model, measured beside its teacher on the held-out prompts."""
    if not c.is_usable or not c.settings.draft:
        return
    live, settings = c.live, c.settings
    file = c.run.out / f"{c.run.name}-draft.gguf"
    export_gguf(live.architecture, c.outcome.best, live.tokenizer, file, settings.draft_type, {"name": file.stem})
    prompts = draft_prompts(c.corpus, live, settings.compare_rows)
    with as_gguf(c.teacher, c.run.out, c.tokenizer) as model:
        pair = measure_pair(
            model.path, file, prompts, settings.answer_tokens, c.events, settings.threads, seconds=c.seconds_to_compare
        )
    record_draft(c.run, file, Proposal(pair.way.tokens, pair.way.sure, pair.speed_up))
    c.events.emit(Say(text=pair.headline))
    if pair.speed_up > 1:
        c.events.emit(Say(text=f"`settle chat {c.teacher.name} --draft {c.run.name}` and `settle serve` use it"))
    c.pair, c.compared = pair, [*c.compared, *pair.card_lines()]
    c.add_files({"draft": str(file)})


def draft_prompts(corpus: RowCorpus, live: LiveRun, limit: int) -> list[list[int]]:
    """Held-out questions as ids, or the beginnings of held-out texts; at most `limit`."""
    if corpus.kind == "text":
        store = corpus.held_out
        texts = [store.document(i).tolist()[:PROMPT_TOKENS] for i in range(min(limit, store.num_documents))]
        return [ids for ids in texts if len(ids) == PROMPT_TOKENS] or texts
    candidate = LiveModel(None, live.tokenizer, "", live.architecture.max_position_embeddings)
    return [candidate.prompt(case) for case in cases(corpus.examples())[:limit]]


def _answered(c: DistillContext, corpus: RowCorpus, rows: RowSettings) -> RowCorpus:
    """Replace the answers of the rows by the teacher's own most likely ones, which are stored."""
    name = f"{corpus.fingerprint}{c.teacher.source.sha256}{c.settings.answer_tokens}"
    folder = home() / "tokens" / f"answers-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    to_learn = [*corpus.examples("train"), *corpus.examples("selection")]
    sides = {"train": to_learn, "held_out": list(corpus.examples())}
    files = {side: folder / f"{side}.jsonl" for side in sides}
    if wanted := [side for side in sides if not files[side].exists()]:
        seconds, number = c.seconds_of(ANSWERS_SHARE), sum(len(sides[side]) for side in wanted)
        with as_gguf(c.teacher, folder.parent) as model:
            for side in wanted:
                part, most = seconds and seconds * len(sides[side]) / number, c.settings.answer_tokens
                files[side] = answer_all(model, sides[side], files[side], most, c.events, part)
    rows = rows.model_copy(update={"held_out_from": files["held_out"], "columns": type(rows.columns)()})
    context = c.teacher.part.max_position_embeddings
    return prepare_rows([str(files["train"])], c.teacher.tokenizer, rows, c.events, context)


def _made_student(c: DistillContext) -> Pretrained:
    """Write the teacher with parts removed, or a model of a given shape, into the run's folder."""
    made = _pruned(c)
    subject = made[-1].subject
    shape = subject.part.options()
    name = f"{c.teacher.name}-{len(shape.layers)}x{shape.layers[0].width}"
    folder = c.run.path / STUDENT / name
    folder.parent.mkdir(exist_ok=True)
    subject.write(folder, {"name": name})
    write_json(c.made_file, [pruned.report for pruned in made])
    before, after = c.teacher.part.num_parameters, subject.num_parameters
    c.events.emit(Say(text=f"the student is {name}: {after / 1e6:,.1f} M parameters of {before / 1e6:,.1f} M"))
    return open_pretrained(folder)


def _pruned(c: DistillContext) -> list[Pruned]:
    """Every step from the teacher to the student."""
    settings, subject, store = c.settings, PrunableModel.read(c.teacher), c.corpus.train
    shape = read_shape(settings.into, subject) if settings.into is not None else None
    if shape is not None and settings.fresh:
        return [fresh(subject, shape, settings.seed)]
    chosen = sorted({i * store.num_documents // PRUNING_ROWS for i in range(PRUNING_ROWS)})  # evenly
    windows = [store.document(i).tolist()[:PIECE_TOKENS] for i in chosen]
    texts = [c.teacher.tokenizer.decode(window) for window in windows]
    work = _pruning_work(c)
    if shape is not None:
        made = shrunk(subject, shape, windows, texts, work)
    elif settings.width is not None:
        made = narrower(subject, settings.width, windows, texts, work)
    else:
        most = subject.num_layers - max(1, round(subject.num_layers / DRAFT_SHARE))
        made = [shorter(subject, settings.drop_layers or most, windows, texts, work)]
    return made


def _pruning_work(c: DistillContext) -> PruningWork:
    """Return what a time budget leaves for pruning, at this machine's measured speed."""

    began = c.spending.total
    seconds = math.inf if c.budget is None else max(0.0, PRUNING_SHARE * (c.budget - began))

    def on_progress(pruner: str, done: int, total: int) -> bool:
        c.events.emit(Progress(what=f"prune {pruner}", done=done, total=total, unit="layers"))
        return c.spending.total - began < seconds

    if c.budget is None:
        return PruningWork(None, on_progress)
    rate = ceiling(shapes(c.teacher.part, PIECE_TOKENS), seconds=0.3)
    return PruningWork(seconds * rate * LAYER_EFFICIENCY, on_progress)


def _layer_map(c: DistillContext) -> list[int]:
    """Return, for each block of a student that lacks some, the teacher's block whose output it should match.

    That is the last one before the next block that was kept.
    """
    reports = read_json(c.made_file) if c.made_file.exists() else []
    if [report["pruner"] for report in reports] != ["depth"]:
        return []
    num_blocks = reports[0]["blocks"][0]
    kept = [block for block in range(num_blocks) if block not in reports[0]["removed"]]
    return [block - 1 for block in kept[1:]] + [num_blocks - 1]


def _windows(corpus: RowCorpus) -> Iterator[list[int]]:
    """Every different row of all sides, as a teacher's record identifies it."""
    seen = set()
    for store in (corpus.train, corpus.selection, corpus.held_out):
        for document in range(store.num_documents):
            (window,) = windows_of(pack_rows(store, np.array([document])))
            if window.tobytes() not in seen:
                seen.add(window.tobytes())
                yield window.tolist()


JOB = RunJob(
    "distill",
    (
        earlier_session, teacher, data, student, cache, plan, build, scores, probe, forecast,
        proof(again), loop, judge, export, compare, draft, result,
    ),
    DistillSettings,
    DistillContext,
)  # fmt: skip
