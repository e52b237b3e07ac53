"""settle distill: a small model learns from a large one, until it has settled."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.choice import Choice, choice
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, Say
from settle.base.run import Run, home, read_json, write_json
from settle.base.stop_signals import Stopping
from settle.commands._session import Spending, Spent, judged, write_result
from settle.commands._tuning import TuningCommand, begin, handed_over
from settle.library.resolve import portable_name

if TYPE_CHECKING:
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.distillation import Learned
    from settle.evaluate.speculative import Pair
    from settle.model.pretrained import Pretrained
    from settle.plan.training_job import TrainingJob
    from settle.shrink.pruners import Pruned
    from settle.train.state import Outcome

STUDENT, RECORD = "student", "teacher"  # folders of a run: what learns as it was at first, and what was said to it
ROW_TOKENS = 512  # of a plain text's pieces; rows of turns may be longer
SEEN_ROWS = 32  # of training, by which a pruner sees what the teacher's parts do
BEGINNING = 32  # tokens of a plain text that a draft's measure goes on with
DRAFT_KEEPS = 6  # a draft keeps one block in so many
# AdamW's where every weight learns: of a student that is good already, that lost parts, or that knows nothing
RATES: dict[str, dict[str, float]] = {
    "given": {"lr": 1e-4, "table_lr": 1e-4},
    "pruned": {"lr": 1e-3, "table_lr": 3e-4},
    "fresh": {"lr": 3e-3, "table_lr": 1e-2},
}


class Distill(TuningCommand):
    """Let a small model learn from a large one what it holds likely, and see how near it comes.

    TEACHER is a run, a model of the store, a folder in Hugging Face's layout or a .gguf file. INPUTS are texts or
    examples, as for `settle tune`. The student is the teacher with blocks taken out (--drop-layers), or narrower
    (--width), or in a given shape (--into), or another model with the same tokenizer (--student).

    The exit code is 3 when the student did not come nearer to its teacher on the held-out rows.
    """

    positional: ClassVar[tuple[str, ...]] = ("teacher", "inputs")

    teacher: str = Field(description="a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    inputs: list[str] = Field([], description="files or folders of texts or examples, or - for stdin")
    objective: Choice = choice(
        "train/objectives", default="distill", only=("distill",), description="what the student learns to minimize"
    )
    adapter: Choice = choice(
        "model/adapters",
        default="full",
        extra={"full": "train every weight"},
        description="what is trained: every weight of the student (full), or an adapter beside it",
    )
    student: str | None = Field(None, description="a model with the teacher's tokenizer that shall learn")
    into: Path | None = Field(None, description="the student's shape: TOML with fields of config.json, such as "
                              "num_hidden_layers = 12")  # fmt: skip
    drop_layers: int | None = Field(None, ge=1, description="blocks that are taken out of the teacher")
    width: float | None = Field(None, gt=0, lt=1, description="share of the teacher's width that is kept")
    fresh: bool = Field(False, description="with --into: begin with weights that know nothing")
    answers: bool | None = Field(None, description="learn the teacher's own answers to the prompts, not those given")
    answer_tokens: int = Field(256, gt=0, description="longest answer that the teacher is asked for, in tokens")
    cache: bool = Field(False, description="llama.cpp reads all rows for the teacher once, and what it says is kept")
    draft: bool = Field(False, description="make a draft for speculative decoding, and measure the pair")
    draft_type: str = Field("q8_0", description="how the draft's file is quantized: q8_0, q4_0 or f16")

    def check(self) -> None:
        super().check()
        ways = {
            "--student": self.student,
            "--into": self.into,
            "--drop-layers": self.drop_layers,
            "--width": self.width,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} each name a student", "give one of them")
        if not given and not self.draft:
            raise UsageError("there is no student", "give --drop-layers, --width, --into, --student or --draft")
        if self.fresh and self.into is None:
            raise UsageError("--fresh says nothing of a shape", "give it with --into")
        if self.draft and self.adapter.name != "full":
            raise UsageError("a draft is a whole model of its own", "leave --adapter out")
        if self.draft_type not in ("q8_0", "q4_0", "f16"):
            raise UsageError(f"--draft-type {self.draft_type} is none", "q8_0, q4_0 or f16")

    def _asked(self) -> dict[str, Any]:
        kept = super()._asked()
        for name in ("teacher", "student", "into"):
            if kept.get(name):
                kept[name] = portable_name(str(kept[name]))
        return kept

    # --- the rows ---

    def corpus(self, events: Events) -> "RowCorpus":
        from settle.library.pretrained import open_pretrained

        return self._corpus(open_pretrained(self.teacher), events)

    def _corpus(self, teacher: "Pretrained", events: Events) -> "RowCorpus":
        from settle.data.rows.prepare import prepare_rows

        part: Any = teacher.part
        most = part.max_position_embeddings
        limits = {"max_tokens": min(self.rows.max_tokens or most, most), "piece_tokens": min(ROW_TOKENS, most)}
        rows = self.rows.model_copy(update={name: getattr(self.rows, name) or limits[name] for name in limits})
        corpus = prepare_rows(self.inputs, teacher.tokenizer, rows, events)
        if corpus.kind == "text":
            if self.answers:
                raise UsageError("plain text asks nothing that the teacher could answer", "leave --answers out")
            return corpus
        wanted = self.draft if self.answers is None else self.answers
        return self._answered(teacher, corpus, rows, events) if wanted else corpus

    def _answered(self, teacher: "Pretrained", corpus: "RowCorpus", rows: Any, events: Events) -> "RowCorpus":
        """The same questions with the teacher's own likeliest answers; those are kept beside the rows."""
        from settle.data.rows.prepare import prepare_rows
        from settle.evaluate.teacher_answers import answer_all
        from settle.library.convert import as_gguf

        name = f"{corpus.fingerprint}{teacher.source.sha256}{self.answer_tokens}"
        folder = home() / "tokens" / f"answers-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        if not (folder / "held_out.jsonl").exists():
            with as_gguf(teacher, folder.parent) as model:
                for side in ("train", "held_out"):
                    answer_all(model, corpus.examples(side), folder / f"{side}.jsonl", self.answer_tokens, events)
        rows = rows.model_copy(update={"held_out_from": folder / "held_out.jsonl", "columns": type(rows.columns)()})
        return prepare_rows([str(folder / "train.jsonl")], teacher.tokenizer, rows, events)

    # --- the run ---

    def start(self, run: Run, origin: dict[str, str], stopping: Stopping, events: Events) -> int:
        from settle.library.pretrained import open_pretrained
        from settle.train.objectives.distill import Distill as Objective

        spending = Spending()
        teacher = open_pretrained(self.teacher)
        if self.student:
            self._require_student(teacher, open_pretrained(self.student))
        corpus = self._corpus(teacher, events)
        base = self._student(run, teacher, corpus, events)
        told: dict[str, Any] = {"teacher": str(teacher.source.path.resolve()), "teacher_sha256": teacher.source.sha256}
        told |= {"record": str(run.path / RECORD)} if self.cache else {}
        told |= {"layer_map": taken} if (taken := _places_taken(run)) else {}
        objective = self.objective.over(told)
        Objective.model_validate(objective.settings).resolved(base)  # refused before the teacher reads for hours
        if self.cache:
            self._record(run.path / RECORD, teacher, corpus, events)
        way = "given" if self.student else "fresh" if self.fresh else "pruned"
        is_usual = self.adapter.name == "full" and self.optimizer.name == "adamw"
        optimizer = self.optimizer.over(RATES[way] if is_usual else {})
        settings = self.model_copy(update={"objective": objective, "optimizer": optimizer})
        return begin(settings, run, origin, base, corpus, spending, stopping, events)

    def _require_student(self, teacher: "Pretrained", student: "Pretrained") -> None:
        from settle.data.tokenizer.compatibility import require_same_tokenizer

        require_same_tokenizer(teacher.tokenizer, student.tokenizer, (teacher.name, student.name))
        if student.source.sha256 == teacher.source.sha256 and self.adapter.name == "full":
            raise UsageError(f"{student.name} is its own teacher", "give a smaller one")

    def _student(self, run: Run, teacher: "Pretrained", corpus: "RowCorpus", events: Events) -> "Pretrained":
        """The model that learns, as it is at first: in the run's folder, unless it was given."""
        from settle.library.pretrained import open_pretrained

        if self.student:
            return open_pretrained(self.student)
        made = self._made(teacher, corpus, events)
        subject = made[-1].subject
        shown = subject.part.options()
        name = f"{teacher.name}-{len(shown.layers)}x{shown.layers[0].width}"
        folder = run.path / STUDENT / name
        folder.parent.mkdir(exist_ok=True)
        subject.write(folder, {"name": name})
        write_json(run.path / STUDENT / "made.json", [pruned.report for pruned in made])
        before, after = teacher.part.num_parameters, subject.num_parameters
        events.emit(Say(text=f"the student is {name}: {after / 1e6:,.1f} M parameters of {before / 1e6:,.1f} M"))
        return open_pretrained(folder)

    def _made(self, teacher: "Pretrained", corpus: "RowCorpus", events: Events) -> "list[Pruned]":
        from settle.shrink.prunable_model import PrunableModel
        from settle.shrink.student_init import fresh, narrower, read_shape, shorter, shrunk

        subject = PrunableModel.read(teacher)
        if self.into is not None:
            shape = read_shape(self.into, subject)
            if self.fresh:
                return [fresh(subject, shape, self.seed)]
        windows = [corpus.train.document(i).tolist()[:ROW_TOKENS] for i in _spread(corpus.train.num_documents)]
        texts = [teacher.tokenizer.decode(window) for window in windows]
        events.emit(Progress(what="prune", done=0, total=1, unit="model"))
        if self.into is not None:
            made = shrunk(subject, shape, windows, texts)
        elif self.width is not None:
            made = narrower(subject, self.width, windows, texts)
        else:
            most = subject.num_layers - max(1, round(subject.num_layers / DRAFT_KEEPS))
            made = [shorter(subject, self.drop_layers or most, windows, texts)]
        events.emit(Progress(what="prune", done=1, total=1, unit="model"))
        return made

    def _record(self, folder: Path, teacher: "Pretrained", corpus: "RowCorpus", events: Events) -> None:
        """Keep all that the teacher says of all rows."""
        from settle.infer.scorer import Scorer
        from settle.library.convert import as_gguf

        windows = list(_windows(corpus))
        total, done = sum(map(len, windows)), 0

        def told(tokens: int) -> None:
            nonlocal done
            done += tokens + 1
            events.emit(Progress(what="the teacher reads", done=done, total=total, unit="tokens"))

        longest = max(map(len, windows))
        with (
            as_gguf(teacher, folder.parent) as model,
            Scorer(model.path, longest, self.threads) as reads,
        ):
            reads.likelihoods(windows, folder, {"teacher": teacher.name, "sha256": teacher.source.sha256}, told)

    @classmethod
    def finish(cls, run: Run, job: "TrainingJob", outcome: "Outcome", spent: Spent, events: Events) -> dict[str, Any]:
        record, result = judged(run, job, outcome, spent, events)
        asked = record["asked"]
        lines: list[str] = []
        assert job.plan.tuning is not None
        made = run.path / STUDENT / "made.json"
        result["student"] = {"name": job.plan.tuning.base_name, "made": read_json(made) if made.exists() else None}
        if result["verdict"] not in ("diverged", "broken"):
            files, gate = handed_over(run, job, outcome, result, events)
            result |= {"files": files | result["files"], "gate": gate}
            learned = _compared(job, outcome, events)
            result["comparison"], lines = learned.to_json(), learned.card_lines()
            if asked["draft"]:
                pair, file = _drafted(run, job, outcome, asked, events)
                result["pair"], lines = pair.to_json(), [*lines, *pair.card_lines()]
                result["files"]["draft"] = str(file)
        write_result(run, job, record, result, lines)
        shutil.rmtree(run.path / RECORD, ignore_errors=True)  # a kilobyte for every token, and said now
        return result


def _places_taken(run: Run) -> list[int]:
    """Of a student without some of the teacher's blocks: the block of the teacher behind which each one's output
    belongs, the last before the next that was kept."""
    made = run.path / STUDENT / "made.json"
    reports = read_json(made) if made.exists() else []
    if [report["pruner"] for report in reports] != ["depth"]:
        return []
    there = reports[0]["blocks"][0]
    kept = [block for block in range(there) if block not in reports[0]["removed"]]
    return [block - 1 for block in kept[1:]] + [there - 1]


def _spread(number: int) -> list[int]:
    """Some of so many rows, evenly."""
    return sorted({i * number // SEEN_ROWS for i in range(SEEN_ROWS)})


def _windows(corpus: "RowCorpus") -> "Iterator[list[int]]":
    """Every row of both sides as a teacher's record knows it, each once."""
    import numpy as np

    from settle.data.rows.batches import pack_rows
    from settle.train.teacher import windows_of

    seen = set()
    for store in (corpus.train, corpus.held_out):
        for document in range(store.num_documents):
            (window,) = windows_of(pack_rows(store, np.array([document])))
            if window.tobytes() not in seen:
                seen.add(window.tobytes())
                yield window.tolist()


def _compared(job: "TrainingJob", outcome: "Outcome", events: Events) -> "Learned":
    """The student against its teacher on held-out rows, as it was and as it is."""
    from settle.evaluate.distillation import learned
    from settle.library.pretrained import open_pretrained
    from settle.train.objectives.distill import Distill as Objective

    assert isinstance(job.objective, Objective)
    before = {name: job.initial(name) for name in job.model.trainable()} if job.whole else None
    teacher = open_pretrained(job.objective.teacher).name
    return learned(job.model, job.objective, job.held_out, before, outcome.best, teacher, events)


def _drafted(
    run: Run, job: "TrainingJob", outcome: "Outcome", asked: dict[str, Any], events: Events
) -> "tuple[Pair, Path]":
    """The student's file as a draft, and what it is worth beside its teacher on the held-out prompts."""
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.speculative import measure_pair
    from settle.formats.gguf import export_gguf
    from settle.library.convert import as_gguf
    from settle.library.pretrained import open_pretrained
    from settle.library.reference import Proposal
    from settle.library.run_models import record_draft

    file = run.out / f"{run.name}-draft.gguf"
    export_gguf(job.architecture, outcome.best, job.tokenizer, file, asked["draft_type"], {"name": file.stem})
    teacher = open_pretrained(job.plan.objective_settings["teacher"])
    assert isinstance(job.corpus, RowCorpus)
    prompts = prompts_of(job.corpus, job.tokenizer, job.architecture, asked["compare_rows"])
    with as_gguf(teacher, run.out, job.tokenizer) as model:
        pair = measure_pair(model.path, file, prompts, asked["answer_tokens"], events, asked["threads"])
    record_draft(run, file, Proposal(pair.way.tokens, pair.way.sure, pair.speed_up))
    events.emit(Say(text=pair.headline))
    if pair.speed_up > 1:
        events.emit(Say(text=f"`settle chat {teacher.name} --draft {run.name}` and `settle serve` use it"))
    return pair, file


def prompts_of(corpus: "RowCorpus", tokenizer: Any, part: Any, limit: int) -> list[list[int]]:
    """Held-out questions as ids, or beginnings of held-out texts, at most so many."""
    from settle.evaluate.compare.candidate import LiveModel
    from settle.evaluate.compare.cases import cases

    if corpus.kind == "text":
        store = corpus.held_out
        texts = [store.document(i).tolist()[:BEGINNING] for i in range(min(limit, store.num_documents))]
        return [ids for ids in texts if len(ids) == BEGINNING] or texts
    asks = LiveModel(None, tokenizer, "", part.max_position_embeddings)
    return [asks.prompt(case) for case in cases(corpus.examples())[:limit]]
