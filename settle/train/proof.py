"""Checks of the gradient on this recipe and this data, in a second, before the first step.

All checks but two run on a float64 copy on the CPU, so that they test the recipe's mathematics and not rounding.
A pretrained model is too large to copy: there they run on the model itself in float32, with wider bars.
Legend: N tokens of a packed batch, V vocabulary.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.base.event_log import Events
from settle.base.events import ProofCheck
from settle.data.batches import Batch
from settle.model.decoder import Decoder
from settle.train.gradient import backward, gradient_of
from settle.train.objectives import Objective

EXACT_TOKENS, EXACT_SEGMENTS = 128, 6  # size of the part of a batch that is computed in float64
# tokens from the start of a row that stay in a shortened row: trained attention rests on the first tokens, and without
# them bfloat16 gives another gradient (measured: 4 % off with them, up to 53 % without, on Gemma 3 270M)
ROW_HEAD_TOKENS = 4
SMALL_LOSS_NATS = 0.5  # below this loss finite differences take smaller steps
AGREEING_NATS = 1e-4  # below this KL a student and its teacher differ by rounding only
STATIONARY_PERTURBATION_STD = 0.02  # std of the noise that moves the weights off a stationary initialisation
# relative difference of the gradient from float64's: rounding of the type's mantissa through all layers and back. A
# tensor of a tuned model may be twice as far off, since its gradient from few tokens may be nearly zero.
GRADIENT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}


@dataclass(frozen=True)
class _Precision:
    """Bars of the exact checks. rounding: relative difference of losses; gradient: of a tensor's gradient;
    rise: how much each tensor's step of a finite difference changes the loss, far above rounding and still small, and
    most: all tensors' steps together; difference: of finite differences from the gradient of one tensor, and of all
    together, relative.
    """

    rounding: float
    gradient: float
    rise: float
    most: float
    difference: float
    difference_of_all: float


EXACT = _Precision(1e-8, 1e-8, 1e-7, math.inf, 1e-5, 1e-7)
IN_PLACE = _Precision(1e-5, 2e-3, 1e-3, 8e-3, 2e-2, 1e-3)


def prove(
    model: Decoder,
    objective: Objective,
    batch: Batch,
    vocab_size: int,
    rows: Sequence[object],
    events: Events,
    seed: int = 0,
    tuned: bool = False,
) -> list[dict[str, object]]:
    """Run every check on a part of `batch`, whose rows are named by `rows`; returns the result of each.

    tuned: the model is a pretrained one, and perhaps only an adapter is trained.
    Raises ProofError at the first failure, naming the tensor or the row. The model is left as it was.
    """
    proof = _Proof(model, objective, objective.annotated(batch), vocab_size, rows, seed, tuned)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("first loss", proof.first_loss),
        ("every tensor gets a gradient", proof.reaches_all),
        ("gradient in the compute type", proof.agrees),
        ("packed = unpacked, accumulated = big batch", proof.packs_and_accumulates),
        ("finite differences", proof.finite_differences),
    ]
    results: list[dict[str, object]] = []
    with _left_alone(model) if tuned else contextlib.nullcontext():
        for name, check in checks:
            try:
                detail = check()
            except ProofError as e:
                events.emit(ProofCheck(check=name, passed=False, detail=e.what))
                raise
            finally:
                if not tuned:  # in place, a check continues with the gradients of the one before it
                    model.zero_grad(set_to_none=True)
            results.append({"check": name, "passed": True, "detail": detail})
            events.emit(ProofCheck(check=name, passed=True, detail=detail))
    return results


@contextlib.contextmanager
def _left_alone(model: Decoder) -> Iterator[None]:
    """Turn dropout off, and restore the weights at the end."""
    weights = {name: parameter.detach().clone() for name, parameter in model.trainable().items()}
    dtype, training = model.compute_dtype, model.training
    model.eval()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.load_trainable(weights)
        model.compute_dtype = dtype
        model.train(training)


@dataclass
class _Proof:
    """The checks, in the order in which they must run: each continues from the results of the one before it."""

    model: Decoder
    objective: Objective
    batch: Batch
    vocab_size: int
    rows: Sequence[object]
    seed: int
    tuned: bool
    small: Batch = field(init=False)
    exact: Decoder = field(init=False)
    half: dict[str, Tensor] = field(init=False, default_factory=dict)  # gradients in the compute type
    half_mean: float = field(init=False, default=0.0)
    kind: torch.dtype = field(init=False)
    mean: float = field(init=False, default=0.0)  # loss of `small` in float64
    dead: list[str] = field(init=False, default_factory=list)

    def first_loss(self) -> str:
        with torch.no_grad():
            total, count = self.objective.batch_loss(self.model, self.batch)
        named = "; ".join(map(str, self.rows[:3]))
        if count == 0:
            raise ProofError(f"the first batch has nothing to learn from: {named}", "check these rows of your data")
        loss, expected = float(total) / count, math.log(self.vocab_size)
        if self.objective.first_loss is not None:
            if not abs(loss - self.objective.first_loss) < 0.05:
                raise ProofError(
                    f"the first loss is {loss:.3f}, and it is {self.objective.first_loss:.3f} for every model",
                    f"the base is not what the adapter begins as: check these rows: {named}",
                )
            return f"{loss:.3f}, as it must be"
        if self.tuned:
            reference = self.objective.reference(self.model, self.batch)
            who, nats = ("base", loss) if reference is None else ("teacher", reference[0] / reference[1])
            if not nats < 1.25 * expected:
                raise ProofError(
                    f"the {who} finds these rows less likely than guessing: {nats:.3f} nats, ln({self.vocab_size}) = "
                    f"{expected:.3f}",
                    f"its tokenizer or its template does not fit it, or these rows are no text: {named}",
                )
            if reference is not None and loss < AGREEING_NATS:
                raise ProofError(
                    f"student and teacher already agree: KL {loss:.1e} nats on the first rows",
                    "there is nothing to learn: choose a smaller student, or other rows",
                )
            if reference is not None:
                return f"{loss:.3f} from the teacher, who pays {nats:.3f} nats; guessing is ln(V) = {expected:.3f}"
            return f"{loss:.3f} nats, guessing is ln(V) = {expected:.3f}"
        if not abs(loss - expected) < 0.1 * expected:
            raise ProofError(
                f"the first loss is {loss:.3f}, an untrained model's is ln({self.vocab_size}) = {expected:.3f}",
                f"the first weights or the targets are wrong: check the model's settings and these rows: {named}",
            )
        return f"{loss:.3f} nats, ln(V) = {expected:.3f}"

    def reaches_all(self) -> str:
        """Every tensor gets a gradient. It may be zero at the first step only; see `finite_differences`."""
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad and not self.tuned:
                raise ProofError(f"{name} is frozen", "it would never be trained: check the model's settings")
        if self.tuned:
            self.small = tails(self.batch, EXACT_TOKENS, EXACT_SEGMENTS)
            self._in_compute_type()
            self.exact = self.model
            self.exact.compute_dtype = torch.float32
        else:
            self.small = shorten(self.batch, EXACT_TOKENS, EXACT_SEGMENTS)
            self.exact = copy.deepcopy(self.model).to("cpu", torch.float64)
            self.exact.compute_dtype = torch.float64
        self.mean = backward(self.exact, self.objective, [self.small])
        for name, parameter in self.exact.trainable().items():
            if parameter.grad is None or not torch.isfinite(parameter.grad).all():
                raise ProofError(f"{name} gets no finite gradient", "it would never be trained: report this")
            if not parameter.grad.any():
                self.dead.append(name)
        return f"{len(self.exact.trainable())} tensors"

    def _in_compute_type(self) -> None:
        """Loss and gradients as training will compute them."""
        self.kind = self.model.compute_dtype
        self.half_mean = backward(self.model, self.objective, [self.small])
        self.half = {name: gradient_of(p).cpu().clone() for name, p in self.model.trainable().items()}
        self.model.zero_grad(set_to_none=True)

    def agrees(self) -> str:
        """Loss and gradients in the compute type agree with those in the exact type."""
        if not self.tuned:
            self._in_compute_type()
        allowed, exact = GRADIENT_TOLERANCE[self.kind], "float32" if self.tuned else "float64"
        if not abs(self.half_mean - self.mean) <= 0.1 * allowed * abs(self.mean):
            raise ProofError(
                f"the loss is {self.half_mean:.6f}, in {exact} it is {self.mean:.6f}", "try --dtype float32"
            )
        worst, name, of_all, size = 0.0, "", 0.0, 0.0
        for key, parameter in self.exact.trainable().items():
            whole = gradient_of(parameter).cpu()
            difference = self.half[key].to(whole.dtype) - whole
            off = _relative(difference, whole)
            if not off <= worst:
                worst, name = off, key
            of_all, size = of_all + float(difference.norm()) ** 2, size + float(whole.norm()) ** 2
        of_all = math.sqrt(of_all / size)
        kind = str(self.kind).removeprefix("torch.")
        self.half = {}
        if not worst <= (2 * allowed if self.tuned else allowed):
            raise ProofError(f"{name}: its gradient in {kind} is {worst:.1e} off {exact}'s", "try --dtype float32")
        if not of_all <= allowed:
            raise ProofError(f"the gradient in {kind} is {of_all:.1e} off {exact}'s", "try --dtype float32")
        return f"{kind}, {of_all:.1e} off, worst tensor {name}: {worst:.1e}"

    def packs_and_accumulates(self) -> str:
        """Rows one by one, accumulated, give the loss and the gradient that they give packed in one batch."""
        bars = self.bars
        norms = [float(gradient_of(p).norm()) for p in self.exact.trainable().values()]
        pieces = list(_segments(self.small, self.objective.segments_per_row))
        apart = backward(self.exact, self.objective, pieces, scale=-1.0)  # .grad now holds the difference
        if not abs(apart - self.mean) <= bars.rounding * abs(self.mean):
            row = self._leaking(pieces)
            raise ProofError(
                f"packed, the loss is {self.mean:.6f}, row by row {apart:.6f}: {row} is seen by another or sees it",
                "attention or positions cross a document: report this",
            )
        off = [
            (float(gradient_of(p).norm()) / (norm + 1e-12), n)
            for (n, p), norm in zip(self.exact.trainable().items(), norms, strict=True)
        ]
        worst, name = max(off)
        if not worst <= bars.gradient:
            raise ProofError(f"{name}: the accumulated gradient is {worst:.1e} off the whole batch's", "report this")
        return f"{len(pieces)} rows, worst tensor {name}: {worst:.1e}"

    def _leaking(self, pieces: list[Batch]) -> str:
        """The first row that affects the rows before it or that they affect."""
        step = self.objective.segments_per_row
        with torch.no_grad():
            for i in range(1, len(pieces)):
                first = _rows(self.small, self.small.cu_seqlens[: (i + 1) * step + 1])
                packed = float(self.objective.batch_loss(self.exact, first)[0])
                alone = sum(float(self.objective.batch_loss(self.exact, p)[0]) for p in pieces[: i + 1])
                if not abs(packed - alone) <= self.bars.rounding * abs(alone):
                    return f"row {i} ({self.rows[i]})" if i < len(self.rows) else f"row {i}"
        return "a row"

    def finite_differences(self) -> str:
        """The slope of the loss along one direction in all tensors at once; on failure, tensor by tensor.

        The direction is the gradient, which shows a wrong scale, plus a random one, which shows a wrong angle; each
        tensor's share is such that all of them change the loss equally.
        """
        parameters = self.exact.trainable()
        random = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():  # the first weights may be a stationary point
            for name, p in parameters.items():
                if not self.tuned or ".adapter." in name:
                    p.add_(
                        torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device),
                        alpha=STATIONARY_PERTURBATION_STD,
                    )
        self.exact.zero_grad(set_to_none=True)
        backward(self.exact, self.objective, [self.small])
        for name in self.dead:
            if not gradient_of(parameters[name]).any():
                raise ProofError(f"{name} gets a gradient of zero", "it would never be trained: report this")
        rise = self._rise
        if (
            not self._difference(parameters, rise * min(1.0, self.bars.most / self.bars.rise / len(parameters)))
            <= self.bars.difference_of_all
        ):
            errors = {name: self._least_difference({name: parameter}) for name, parameter in parameters.items()}
            wrong = [name for name, off in errors.items() if off > self.bars.difference]
            # the loss jumps wherever a router chooses another expert, and steps in float32 are too long to avoid that
            jumps = self.tuned and any(name.endswith("mlp.gate") for name in self.exact.linears())
            if len(wrong) > (len(errors) // 5 if jumps else 0):
                name = max(wrong, key=lambda name: errors[name])
                raise ProofError(f"{name}: its gradient is {errors[name]:.1e} off finite differences", "report this")
        return f"{len(parameters)} tensors, relative difference below {self.bars.difference:.0e}"

    def _least_difference(self, parameter: dict[str, torch.nn.Parameter]) -> float:
        """The smallest difference for one tensor over three steps. A step may cross a jump of the loss where a router
        switches experts, so smaller steps in other directions are tried; a wrong gradient is wrong along each."""
        least = math.inf
        for number, part in enumerate((1, 5, 20)):
            least = min(least, self._difference(parameter, self._rise / part, number))
            if least <= self.bars.difference:
                break
        return least

    def _difference(self, parameters: dict[str, torch.nn.Parameter], rise: float, direction_number: int = 0) -> float:
        """Relative difference between the gradient's slope and the measured one along a direction in `parameters`.

        rise: the intended change of the loss by each tensor's step.
        """
        expected = 0.0
        losses: list[float] = []
        with torch.no_grad():
            for sign in (+1, -2, +1):  # the last puts the weights back
                random = torch.Generator().manual_seed(self.seed + 1 + direction_number)
                for p in parameters.values():
                    grad = gradient_of(p)
                    direction = torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device)
                    direction.mul_(grad.norm() / direction.norm()).add_(grad).div_(grad.norm() ** 2)
                    expected += float((grad * direction).sum()) if not losses else 0.0
                    p.add_(direction, alpha=sign * rise)
                total, count = self.objective.batch_loss(self.exact, self.small)
                losses.append(float(total) / count)
        measured = (losses[0] - losses[1]) / (2 * rise)
        return abs(measured - expected) / abs(expected)

    @property
    def bars(self) -> _Precision:
        return IN_PLACE if self.tuned else EXACT

    @property
    def _rise(self) -> float:
        """The step's size: smaller when the loss is small already, as a student's near its teacher."""
        return self.bars.rise * (min(1.0, self.mean / SMALL_LOSS_NATS) if self.tuned else 1.0)


def shorten(batch: Batch, tokens: int, segments: int) -> Batch:
    """The beginning of a packed batch: at most `tokens` and `segments`, cut into at least two segments."""
    n = min(tokens, len(batch.inputs))
    cuts = [int(c) for c in batch.cu_seqlens if c < n][:segments]
    if len(cuts) == segments:
        n = min(n, int(batch.cu_seqlens[segments]))
    edges = {*cuts, n}
    if len(edges) < 3 and n > 2:
        edges.add(n // 3)
    return _rows(batch, np.array(sorted(edges), dtype=batch.cu_seqlens.dtype))


def _rows(batch: Batch, edges: np.ndarray) -> Batch:
    """The part of a batch between the first and the last edge, its segments bounded by `edges` (S+1,)."""
    first, last = int(edges[0]), int(edges[-1])
    positions = np.concatenate([np.arange(b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    record = None if batch.record is None else batch.record[first:last]
    return Batch(batch.inputs[first:last], batch.targets[first:last], edges - edges[0], positions, record)


def tails(batch: Batch, tokens: int, segments: int) -> Batch:
    """The ends of the first `segments` rows, where answers are, after their first tokens; at most `tokens` in all."""
    bounds = batch.cu_seqlens[: segments + 1].tolist()
    each = tokens // (len(bounds) - 1)
    head = min(ROW_HEAD_TOKENS, each // 2)
    pieces = [
        np.r_[first : first + head, last - each + head : last] if last - first > each else np.arange(first, last)
        for first, last in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    place = np.concatenate(pieces)
    positions = np.concatenate([np.arange(len(piece)) for piece in pieces])
    edges = np.cumsum([0, *map(len, pieces)]).astype(batch.cu_seqlens.dtype)
    record = None if batch.record is None else batch.record[place]
    return Batch(batch.inputs[place], batch.targets[place], edges, positions, record)


def _segments(batch: Batch, step: int) -> Iterator[Batch]:
    """Rows of `step` segments, one by one."""
    for i in range(0, len(batch.cu_seqlens) - 1, step):
        yield _rows(batch, batch.cu_seqlens[i : i + step + 1])


def _relative(difference: Tensor, whole: Tensor) -> float:
    """The ratio of the norms; 0 where `whole` is so small that rounding decides."""
    size = float(whole.norm())
    return float(difference.norm()) / size if size > 1e-9 else 0.0
