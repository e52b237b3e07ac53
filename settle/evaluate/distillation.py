"""Compares a student with its teacher on held-out rows, token by token, before and after training.

Legend: P targets of all held-out rows, V vocabulary.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress, Say
from settle.base.files import JsonObject
from settle.base.statistics import FEWEST_FAMILIES, PairedTest, paired_test
from settle.data.batches import Batch
from settle.data.layouts import Example
from settle.data.likelihoods import Compared, compare
from settle.evaluate.compare.candidate import CONTEXT, FIRST, Answer, FileModel
from settle.evaluate.compare.cases import cases, spread_order
from settle.evaluate.compare.verdict_file import Files, write_read_verdict
from settle.library.reference import ModelRef
from settle.model.decoder import Decoder
from settle.model.source import Source
from settle.train.objectives.distill import Distill
from settle.train.teacher import LiveTeacher, RecordedTeacher

OnBatch = Callable[[], bool]
MEASURE = "minus the KL divergence from the teacher, nats per token"
STRETCH = 64  # targets whose mean counts as one sample of the paired test
_LOGITS = 1 << 24  # logits of either model held at once, in fp32


@dataclass(frozen=True)
class Nearness:
    """A student on P targets.

    apart: its difference from the teacher, (P,) each. teacher: the teacher's log-probabilities of the targets (P,).
    stretches: number of targets in each piece, which never spans two rows; families: group ids of the pieces; pieces of
    one row, or of near-duplicate rows, share one.
    """

    apart: Compared
    teacher: np.ndarray
    stretches: tuple[int, ...]
    families: tuple[int, ...]

    def to_json(self) -> dict[str, float]:
        """Means in nats per token, and the share of tokens where both have the same likeliest token."""
        kl = self.apart.kl
        return {
            "kl": float(kl.mean()),
            "kl_99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "loss": float(-self.apart.logprobs.mean()),
            "same_top": float(self.apart.top_equal.mean()),
        }

    def means(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of `values` (P,) over each stretch."""
        return np.array([part.mean() for part in np.split(values, np.cumsum(self.stretches)[:-1])])


def nearness(
    model: Decoder, objective: Distill, batches: Sequence[Batch], on_batch: OnBatch = lambda: True
) -> Nearness:
    """Compare the model with the objective's teacher, in fp32, by plain KL(teacher ‖ student).

    on_batch: called after each batch; the comparison ends when it returns False.
    """
    dtype, training = model.compute_dtype, model.training
    model.eval()
    model.compute_dtype = torch.float32
    objective.loaded_teacher.follow(model)
    try:
        with torch.no_grad():
            measured, read = [], []
            for batch in batches:
                if objective.count(batch):
                    measured.append(_of_batch(model, objective, batch))
                    read.append(batch)
                    if not on_batch():
                        break
    finally:
        model.compute_dtype = dtype
        model.train(training)
    apart = Compared.joined([a for a, _ in measured])
    pieces = [piece for number, batch in enumerate(read) for piece in _stretches(batch, number)]
    # of a few texts, every row stands for itself; of a few rows, every stretch
    families, rows = [family for _, _, family in pieces], [row for _, row, _ in pieces]
    ways: list[list[object]] = [list(families), list(rows)]
    known = (way for way in ways if None not in way and len(set(way)) >= FEWEST_FAMILIES)
    chosen = next(known, list(range(len(pieces))))
    numbers = {family: number for number, family in enumerate(dict.fromkeys(chosen))}
    stretches, ours = tuple(count for count, _, _ in pieces), tuple(numbers[family] for family in chosen)
    return Nearness(apart, np.concatenate([t for _, t in measured]), stretches, ours)


def _stretches(batch: Batch, number: int) -> list[tuple[int, tuple[int, int], int | None]]:
    """Targets of each row, a long row in several nearly equal pieces: how many, of which row and which family."""
    stretches: list[tuple[int, tuple[int, int], int | None]] = []
    counts = np.add.reduceat(batch.targets >= 0, batch.cu_seqlens[:-1], dtype=int).tolist()
    families = [None] * len(counts) if batch.families is None else batch.families.tolist()
    for row, (count, family) in enumerate(zip(counts, families, strict=True)):
        pieces = -(-count // STRETCH)
        stretches += [(count * (i + 1) // pieces - count * i // pieces, (number, row), family) for i in range(pieces)]
    return stretches


def _of_batch(model: Decoder, objective: Distill, batch: Batch) -> tuple[Compared, np.ndarray]:
    batch = objective.annotated(batch)
    counted = np.flatnonzero(batch.targets >= 0)
    device = model.device
    inputs, bounds = torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.cu_seqlens).to(device)
    where, targets = torch.from_numpy(counted).to(device), torch.from_numpy(batch.targets[counted]).to(device)
    ours = model(inputs, bounds).index_select(0, where)
    teacher = objective.loaded_teacher
    step = max(1, _LOGITS // model.options.vocab_size)
    if isinstance(teacher, RecordedTeacher):
        assert batch.record is not None
        places = batch.record[counted]
        recorded = teacher.record.at(places)
        rows = [slice(a, a + step) for a in range(0, len(counted), step)]
        ids = batch.targets[counted]
        parts = [compare(recorded[r], model.logits(ours[r]).cpu().numpy(), ids[r]) for r in rows]
        return Compared.joined(parts), np.asarray(recorded.came_logprobs)
    return _against_live(model, teacher, ours, (inputs, bounds, where, targets), step)


def _against_live(
    model: Decoder, teacher: LiveTeacher, ours: torch.Tensor, batch: tuple[torch.Tensor, ...], step: int
) -> tuple[Compared, np.ndarray]:
    """Compare ours (P, D), the student's hidden states, with a live teacher.

    batch: inputs, bounds, places of the targets (P,), targets (P,).
    """
    inputs, bounds, where, targets = batch
    hidden = [one(inputs, bounds).index_select(0, where) for one in teacher.models]
    kl, own, theirs, top = [], [], [], []
    for first in range(0, len(where), step):
        rows = slice(first, first + step)
        log_q = model.logits(ours[rows]).log_softmax(-1)
        known = [one.logits(states[rows]).log_softmax(-1) for one, states in zip(teacher.models, hidden, strict=True)]
        log_p = torch.stack(known).logsumexp(0).log_softmax(-1)
        target = targets[rows].unsqueeze(1)
        own.append(log_q.gather(1, target))
        theirs.append(log_p.gather(1, target))
        top.append(log_q.argmax(-1) == log_p.argmax(-1))
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    flat = [torch.cat(part).flatten().cpu().numpy() for part in (kl, own, top, theirs)]
    return Compared(flat[0].astype(float), flat[1], flat[2]), flat[3]


@dataclass(frozen=True)
class Learned:
    """A student before and after training.

    teacher: its name. paired: a test over families of rows, by KL. is_whole: whether there was time for all rows. read:
    ids and targets of each batch of them.
    """

    before: Nearness
    after: Nearness
    teacher: str
    paired: PairedTest
    is_whole: bool = True
    read: Sequence[object] = ()

    @property
    def scores(self) -> tuple[list[float], list[float]]:
        """The closeness to the teacher of each stretch, in nats per token below 0, before and after training."""
        before, after = ((-side.means(side.apart.kl)).tolist() for side in (self.before, self.after))
        return before, after

    def keep(self, folder: Path, base: Source, student: Source) -> Path:
        """Write verdict.json into a folder, by the files of the student before and after training."""
        found = {"headline": self.headline, "measure": MEASURE}
        return write_read_verdict(
            folder, found, self.scores, self.before.families, self.read, (Files.of(base), Files.of(student))
        )

    @property
    def recovered(self) -> float | None:
        """The share of the gap to the teacher's loss that training closed; None without a gap."""
        best = float(-self.after.teacher.mean())
        lost = float(-self.before.apart.logprobs.mean()) - best
        left = float(-self.after.apart.logprobs.mean()) - best
        return 1 - left / lost if lost > 0 else None

    @property
    def headline(self) -> str:
        before, after = self.before.to_json(), self.after.to_json()
        return (
            f"{after['kl']:.3f} nats per token from {self.teacher}, {before['kl']:.3f} before; the same likeliest "
            f"token in {after['same_top']:.0%}, {before['same_top']:.0%} before"
        )

    def to_json(self) -> JsonObject:
        return {
            "verdict": self.paired.verdict,
            "headline": self.headline,
            "teacher": {"name": self.teacher, "loss": float(-self.after.teacher.mean())},
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "kl_change": [-self.paired.difference.high, -self.paired.difference.low],
            "recovered": self.recovered,
            "tokens": len(self.after.teacher),
        }

    def card_lines(self) -> list[str]:
        """Lines for the model card."""
        before, after = self.before.to_json(), self.after.to_json()
        lines = [f"{self.headline[:1].upper()}{self.headline[1:]}, on {len(self.after.teacher):,} held-out tokens.", ""]
        lines += ["| | before | after | teacher |", "|---|---|---|---|"]
        best = float(-self.after.teacher.mean())
        lines.append(f"| loss, nats per token | {before['loss']:.4f} | {after['loss']:.4f} | {best:.4f} |")
        for name, key in (("KL, mean", "kl"), ("KL, 99th percentile", "kl_99"), ("KL, largest", "kl_max")):
            lines.append(f"| {name} | {before[key]:.4f} | {after[key]:.4f} | 0 |")
        lines.append(f"| same likeliest token | {before['same_top']:.1%} | {after['same_top']:.1%} | 100 % |")
        if self.recovered is not None:
            lines += ["", f"Training closed {self.recovered:.0%} of the gap to the teacher's loss."]
        return [*lines, ""]


def learned(
    model: Decoder,
    objective: Distill,
    batches: Sequence[Batch],
    before: Mapping[str, torch.Tensor] | None,
    after: Mapping[str, torch.Tensor],
    teacher: str,
    events: Events,
    seconds: float | None = None,
) -> Learned:
    """Compare the model before and after training with its teacher.

    before, after: what `model.load_trainable` takes; the model is left with `after`. Without `before` it is the model
    without its adapters. seconds: what the comparison may take; it reads fewer batches where that is too little, and
    says so.
    """
    batches = [batch for batch in batches if objective.count(batch)]
    spread = [batches[i] for i in spread_order(len(batches))]
    count, began, read = len(batches), time.monotonic(), 0

    def on_batch() -> bool:
        nonlocal read
        read += 1
        events.emit(Progress(what="compare with the teacher", done=read, total=2 * count, unit="batches"))
        spent = time.monotonic() - began
        return seconds is None or read >= count or spent * (1 + 1 / read) <= seconds / 2

    if before is not None:
        model.load_trainable(before)
    with model.without_adapters():
        first = nearness(model, objective, spread, on_batch)
    model.load_trainable(after)
    is_whole = read >= count
    if not is_whole:
        events.emit(Say(text=f"the time had room to compare {read} of {count} batches of held-out rows"))
        spread, count, seconds = spread[:read], read, None
    last = nearness(model, objective, spread, on_batch)
    far = [(-side.means(side.apart.kl)).tolist() for side in (first, last)]
    known = [(batch.inputs.tolist(), batch.targets.tolist()) for batch in spread]
    comparison = Learned(first, last, teacher, paired_test(far[0], far[1], first.families), is_whole, known)
    events.emit(Say(text=comparison.headline))
    return comparison


def answer_all(
    model: ModelRef,
    examples: Iterable[Example],
    path: Path,
    max_tokens: int,
    events: Events,
    seconds: float | None = None,
) -> Path:
    """Write each question with the model's likeliest answer to `path`, as jsonl, and return it.

    max_tokens: of an answer. A question that it says nothing to, or that does not fit into memory's context, is left
    out. seconds: what that may take. When it is too little, an evenly spread part of the questions is answered, and the
    file that is returned has their number in its name. Raises DataError when none is left, and what `Engine` raises.
    """
    questions = cases(examples)
    lines = []
    began = time.monotonic()
    with FileModel.open(model.weights, model.name, model.adapter, CONTEXT) as teacher:
        answers: dict[int, Answer] = {}

        def on_progress(done: int) -> None:
            done += len(answers)
            events.emit(Progress(what="the teacher answers", done=done, total=len(questions), unit="questions"))

        order = spread_order(len(questions)) if seconds is not None else list(range(len(questions)))
        group = FIRST if seconds is not None else max(1, len(order))
        while len(answers) < len(order):
            spent, before = time.monotonic() - began, len(answers)
            if seconds is not None and before and spent * (1 + group / before) > seconds:
                break
            chosen = order[before : before + group]
            asked = [questions[i] for i in chosen]
            found = teacher.answers(asked, max_tokens, on_progress)
            answers |= dict(zip(chosen, found, strict=True))
        if len(answers) < len(questions):
            text = f"the time had room for the teacher's answers to {len(answers)} of {len(questions)} questions"
            events.emit(Say(text=text))
            path = path.with_stem(f"{path.stem}-{len(answers)}")
        for case, answer in ((questions[i], answers[i]) for i in sorted(answers)):
            if not answer.text.strip():
                continue
            if teacher.chats:
                message = {"role": "assistant", "content": answer.text}
                row = {"messages": [*case.messages, message], **({"tools": list(case.tools)} if case.tools else {})}
            else:
                row = {"prompt": case.prompt, "completion": answer.text}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"{model.name} answers none of {len(answers)} questions", "learn the answers that are given")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(path)  # on Windows `rename` refuses where a file is
    return path
