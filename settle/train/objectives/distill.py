"""Distillation: the student's next-token distribution is brought to a teacher's, and its layers too if wanted."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from settle.base.errors import FormatError, UsageError
from settle.data.batches import Batch
from settle.data.tokenizer.vocabulary import require_same_tokenizer
from settle.library.pretrained import open_pretrained
from settle.model.config import DecoderOptions
from settle.model.decoder import Decoder
from settle.model.kv_cache import continued
from settle.model.layers.freezable import FreezableModule, as_kind
from settle.model.layers.kernels import apply
from settle.model.layers.transfer import on_host, to_device
from settle.model.pretrained import Pretrained
from settle.train.objectives import Names, Numbers, Objective, Rows, on_device, supervised
from settle.train.objectives._definition import (
    divergence,
    divergence_from_record,
    hidden_states,
    log_softmax,
    logits_of,
    supervised_places,
)
from settle.train.objectives._divergence import Kind, LinearDivergence, Measure
from settle.train.objectives.next_token import NextToken
from settle.train.teacher import LiveTeacher, RecordedTeacher, Teacher, with_states

OPENING = 4  # a plain text is completed after one part in so many of it


class Distill(Objective):
    """(1 - text) · divergence from the teacher + text · next token + hidden · distance of the layers, per target.

    Forward KL spreads the student over all that the teacher holds possible, reverse KL keeps it to what it holds
    likely, js lies between them. Trained on its own samples (arXiv:2306.13649), the student learns from its own errors.
    """

    rows: ClassVar[Rows] = "text"
    is_per_token: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True

    teacher: str = Field("", description="teacher: a run, a model of the store, a folder or a .gguf file")
    others: Names = Field(
        [], description="more teachers, separated by commas; the mean of their probabilities is learned"
    )
    teacher_sha256: str = Field(
        "", description="sha256 of each teacher's files, separated by commas; computed when not given"
    )
    record: str = Field(
        "", description="folder with recorded teacher distributions; the teacher itself is asked when not given"
    )
    kind: Kind = Field("forward", description="divergence: forward KL, reverse KL, or js (Jensen–Shannon)")
    temperature: float = Field(
        1.0, gt=0, description="temperature of both distributions: softmax(logits / temperature)"
    )
    mixture: float = Field(0.5, gt=0, lt=1, description="share of the teacher in the mixture that js compares with")
    text: float = Field(0.0, ge=0, le=1, description="share of the next-token loss in the total loss")
    hidden: float = Field(
        0.0, ge=0, description="weight of the squared distance between hidden states, relative to the teacher's"
    )
    layer_map: Numbers = Field(
        [], description="teacher layer for each student layer, separated by commas; spread evenly when not given"
    )
    on_policy: float = Field(
        0.0, ge=0, le=1, description="share of the batches in which the student generates the completions"
    )
    sample_temperature: float = Field(1.0, ge=0, description="sampling temperature of those completions; 0 is greedy")
    stops: Numbers = Field(
        [], description="token ids that end a completion, separated by commas; the tokenizer's when not given"
    )
    evaluate_text: bool = Field(False, description="evaluate by the next-token loss alone")
    chunk_logits: int = Field(1 << 20, gt=0, description="logits of each model that are held in fp32 at once")

    _teacher: Teacher | None = PrivateAttr(None)

    # --- what it needs ---

    def resolved(self, base: Pretrained) -> Self:
        if not self.teacher:
            raise UsageError("distillation needs a teacher", "name it with --objective.teacher")
        teachers = [open_pretrained(name) for name in (self.teacher, *self.others)]
        theirs, ours = teachers[0].part.options(), base.part.options()
        for teacher in teachers:
            require_same_tokenizer(teacher.tokenizer, base.tokenizer, (teacher.name, base.name))
            if (rows := teacher.part.options().vocab_size) != ours.vocab_size:
                raise UsageError(
                    f"{teacher.name} has {rows:,} rows in its table and {base.name} {ours.vocab_size:,}",
                    "choose a student whose table was not filled up to another size",
                )
        self._refuse_of_record()
        tokenizer = base.tokenizer
        ends = sorted({i for i in (tokenizer.eos_id, tokenizer.turn_end_id) if i is not None})
        paths = [str(teacher.source.path.resolve()) for teacher in teachers]
        return self.model_copy(
            update={
                "teacher": paths[0],
                "others": paths[1:],
                "teacher_sha256": self.teacher_sha256 or ",".join(teacher.source.sha256 for teacher in teachers),
                "layer_map": self._layers(theirs, ours) if self.hidden else [],
                "stops": self.stops or ends,
            }
        )

    def _refuse_of_record(self) -> None:
        wrong = {
            "--objective.temperature": self.temperature != 1.0,
            "--objective.hidden": self.hidden > 0,
            "--objective.on-policy": self.on_policy > 0,
            "--objective.others": bool(self.others),
        }
        for setting, is_set in wrong.items():
            if self.record and is_set:
                raise UsageError(
                    f"{setting} needs a teacher that can be asked, and its record only says what it held likely",
                    "leave one of them out",
                )

    def _layers(self, theirs: DecoderOptions, ours: DecoderOptions) -> list[int]:
        there, here = len(theirs.layers), len(ours.layers)
        if theirs.layers[0].width != ours.layers[0].width:
            raise UsageError(
                f"layers of width {ours.layers[0].width} cannot be held against layers of {theirs.layers[0].width}",
                "leave --objective.hidden out, or give the student the teacher's width",
            )
        chosen = self.layer_map or [round((i + 1) * there / here) - 1 for i in range(here)]
        if len(chosen) != here or not all(0 <= i < there for i in chosen):
            raise UsageError(
                f"--objective.layer-map {chosen} does not name one of {there} layers for each of {here}",
                "give as many numbers as the student has layers, counted from 0",
            )
        return chosen

    def prepared(self, model: FreezableModule) -> Self:
        if self.record:
            return self.with_teacher(RecordedTeacher.open(Path(self.record)))
        teachers = [open_pretrained(name) for name in (self.teacher, *self.others)]
        for teacher, known in zip(teachers, self.teacher_sha256.split(","), strict=False):
            if known and teacher.source.sha256 != known:
                raise FormatError(
                    f"{teacher.name} is not the teacher that the run began with: its sha256 is "
                    f"{teacher.source.sha256[:12]}…, it was {known[:12]}…",
                    f"put it back as it was, at {teacher.source.path}",
                )
        first, *others = (teacher.load(dtype=model.compute_dtype).to(model.device) for teacher in teachers)
        return self.with_teacher(LiveTeacher(first, self.layer_map if self.hidden else (), others))

    def with_teacher(self, teacher: Teacher) -> Self:
        """Return a copy with its teacher loaded."""
        objective = self.model_copy()
        objective._teacher = teacher
        return objective

    @property
    def loaded_teacher(self) -> Teacher:
        assert self._teacher is not None, "prepare it first"
        return self._teacher

    def bytes_beside(self, number: int) -> float:
        names = () if self.record else (self.teacher, *self.others)
        return float(sum(open_pretrained(name).part.num_parameters for name in names) * number)

    @property
    def evaluator(self) -> Objective:
        return NextToken() if self.evaluate_text else self

    def annotated(self, batch: Batch) -> Batch:
        return self.loaded_teacher.find(batch)

    def reference(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        batch = self.annotated(batch)
        inputs, targets, cu_seqlens = on_device(model, batch)
        counted = supervised(targets)
        losses = self.loaded_teacher.losses(inputs, cu_seqlens, counted, targets[counted], _record(batch, model))
        return float(losses.sum()), len(counted)

    # --- the loss ---

    def loss(self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        return self._apart(model, inputs, targets, cu_seqlens, None)

    def batch_loss(self, model: FreezableModule, batch: Batch) -> tuple[Tensor, int]:
        batch = self.annotated(batch)
        inputs, targets, cu_seqlens = on_device(model, batch)
        # never in an evaluation: a held-out loss is of the same tokens every time, and so is a proof's
        if self.on_policy and model.training and torch.is_grad_enabled() and float(torch.rand(())) < self.on_policy:
            inputs, targets, cu_seqlens = self.own_words(as_kind(model, Decoder), inputs, targets, cu_seqlens)
        return self._apart(model, inputs, targets, cu_seqlens, _record(batch, model))

    def _apart(
        self, model: FreezableModule, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor, record: Tensor | None
    ) -> tuple[Tensor, int]:
        model = as_kind(model, Decoder)
        counted = supervised(targets)
        self.loaded_teacher.follow(model)
        output = self.loaded_teacher.output(inputs, cu_seqlens, counted, record)
        layers = range(len(output.states))
        hidden, states = with_states(model, inputs, cu_seqlens, layers)
        cast, head = model.head_operands()
        measure = Measure(self.kind, self.temperature, self.mixture, self.text)
        total = apply(
            LinearDivergence, hidden.index_select(0, counted), cast, head, targets[counted], output.distributions,
            measure, self.chunk_logits, model.options.logit_soft_cap,
        )  # fmt: skip
        for ours, theirs in zip(states, output.states, strict=True):
            total = total + self.hidden / len(layers) * _distance(ours.index_select(0, counted), theirs)
        return total, len(counted)

    @torch.no_grad()
    def by_definition(self, model: FreezableModule, batch: Batch) -> tuple[float, int]:
        model = as_kind(model, Decoder)
        batch, total, teacher = self.annotated(batch), 0.0, self.loaded_teacher
        places, heat, theirs = supervised_places(batch), self.temperature, None
        teacher.follow(model)
        if isinstance(teacher, LiveTeacher):
            theirs = [hidden_states(one, batch, places) for one in teacher.models]
            total = self.hidden * _mean_distance(model, teacher, batch, places) if teacher.layers else 0.0
        for rows, logits in logits_of(model, hidden_states(model, batch, places)):
            log_q = log_softmax(logits / heat)
            if isinstance(teacher, LiveTeacher):
                assert theirs is not None
                known = [
                    log_softmax(m.logits(h[rows]).cpu().double().numpy())
                    for m, h in zip(teacher.models, theirs, strict=True)
                ]
                log_p = log_softmax(np.logaddexp.reduce(known) / heat)
                apart = divergence(self.kind, log_p, log_q, self.mixture)
            else:
                assert batch.record is not None
                kept = teacher.record.at(batch.record[places[rows]])
                apart = divergence_from_record(self.kind, kept, log_q, self.mixture)
            nats = -np.take_along_axis(log_softmax(logits), batch.targets[places[rows], None], 1)
            total += (1 - self.text) * heat**2 * float(apart.sum()) + self.text * float(nats.sum())
        return total, len(places)

    def own_words(
        self, model: Decoder, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch with every row's answer, from its first one on, in the student's own words and no longer.

        A plain text is completed after its first quarter. Draws come from torch's generator, which the loop seeds by
        position: a resumed run draws the same.
        """
        bounds, known = on_host(cu_seqlens).tolist(), on_host(targets)
        prompts, lengths = [], []
        for begin, end in zip(bounds, bounds[1:], strict=False):
            learned = (known[begin:end] >= 0).nonzero()
            first = int(learned[0]) if len(learned) else end - begin - 1
            if first == 0:
                first = (end - begin) // OPENING
            prompts.append(inputs[begin : begin + first + 1])
            lengths.append(end - begin - first if len(learned) else 0)
        answers = continued(model, prompts, lengths, self.stops, self.sample_temperature)
        rows = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
        aims = [torch.cat([p.new_full((len(p) - 1,), -1), answer]) for p, answer in zip(prompts, answers, strict=True)]
        places = [row[: len(aim)] for row, aim in zip(rows, aims, strict=True)]
        edges = to_device(torch.tensor([0, *map(len, places)]).cumsum(0).to(cu_seqlens.dtype), inputs.device)
        return torch.cat(places), torch.cat(aims), edges


def _record(batch: Batch, model: FreezableModule) -> Tensor | None:
    return None if batch.record is None else to_device(torch.from_numpy(batch.record), model.device)


def _mean_distance(model: Decoder, teacher: LiveTeacher, batch: Batch, places: np.ndarray) -> float:
    """Sum over `places` (P,) the squared distance relative to the teacher's length, averaged over layers."""
    inputs, _, cu_seqlens = on_device(model, batch)
    ours = with_states(model, inputs, cu_seqlens, range(len(teacher.layers)))[1]
    aims = with_states(teacher.model, inputs, cu_seqlens, teacher.layers)[1]
    total = 0.0
    for own, aim in zip(ours, aims, strict=True):
        here, there = (side.cpu().double().numpy()[places] for side in (own, aim))
        total += float((((here - there) ** 2).sum(-1) / np.maximum((there**2).sum(-1), 1e-6)).sum())
    return total / len(teacher.layers)


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared distance of rows (P, D) relative to the length of the teacher's, summed over rows."""
    wide = torch.promote_types(ours.dtype, torch.float32)
    ours, theirs = ours.to(wide), theirs.to(wide)
    return ((ours - theirs).square().sum(-1) / theirs.square().sum(-1).clamp_min(1e-6)).sum()
