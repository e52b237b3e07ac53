"""The proof before the first step: the gradient, the mask and the packing are right for this recipe and this data.

All checks but two run on a float64 copy on the CPU, so that they test the recipe's mathematics and not rounding.
A pretrained model is too large to copy: there they run on the model itself in float32, with wider bars, and on whole
rows, since the error of a half type depends on the length of a row (measured: 30 % on 21 tokens, 6 % on whole rows).
Legend: N tokens of a packed batch, V vocabulary.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from settle.base.errors import ProofError
from settle.base.event_log import Events
from settle.base.events import ProofCheck
from settle.data.batches import Batch
from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import Selector
from settle.train.gradient import backward, gradient_of
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.proof.compute_type import Deviation, EmulatedRounding, deviation, require_within
from settle.train.proof.definition import (
    moves_loss,
    require_definition,
    require_rate,
    require_sight,
    require_tied,
    stepped,
)
from settle.train.proof.source import Decode, SourceRow, require_targets

EXACT_TOKENS, EXACT_SEGMENTS = 128, 6  # size of the part of a batch that is computed in float64, or over and over
WHOLE_TOKENS, FEWEST_TOKENS = 1024, 256  # most tokens of whole rows, and what is no matter of memory
SMALL_LOSS_NATS = 0.5  # below this loss finite differences take smaller steps
STATIONARY_PERTURBATION_STD = 0.02  # std of the noise that moves the weights off a stationary initialisation
# the largest relative difference of the gradient from float64's, whatever the rounding of the model is. A tensor of a
# tuned model may be twice as far off, since its gradient from few tokens may be nearly zero.
GRADIENT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}
PARTS, DIRECTIONS = (1, 5, 20), 8  # of the step of a finite difference of one tensor; of extrapolated ones
FLOAT32_NATS = 2e-6  # rounding of a loss of a few nats in float32
FARTHEST = (
    0.3  # root mean square of a tensor's longest step: with hardly any gradient it would go where nothing is finite
)
SHARES_OF_STEP = (1.0, 0.1, 0.01)  # of the first step's rate: a step too long for one batch is no wrong step


@dataclass
class ExpertChoice:
    """What the routers of a model chose, and which gates were open.

    It is held fixed while types are compared, and while the loss is differenced.

    Which experts a token takes is a step function of its router's chances: the smallest rounding changes it where two
    are nearly as likely, and a gradient through another expert is another gradient, however right it is. So the exact
    computation records its choices, a computation in another type repeats them, and the chances are compared by
    themselves. N tokens, E experts, K of them chosen; calls: for each router by its name and call the chances (N, E)
    and the experts (N, K).
    """

    calls: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    deviation: float = 0.0  # relative norm of the difference of the chances of the last `repeated`

    @contextlib.contextmanager
    def recorded(self, model: Decoder) -> Iterator[None]:
        """Record what `model` chooses meanwhile, in place of what was recorded before."""
        self.calls = {name: [] for name in routers(model)}

        def record(name: str, chances: Tensor, chosen: Tensor) -> None:
            self.calls[name].append((chances.detach().cpu(), chosen.cpu()))

        with contextlib.ExitStack() as hooks:
            for name, router in routers(model).items():
                hooks.callback(router.register_forward_hook(lambda _, i, o, name=name: record(name, i[0], o[1])).remove)
            yield

    @contextlib.contextmanager
    def repeated(self, model: Decoder) -> Iterator[None]:
        """Let `model` take the recorded experts, call by call, with its own chances; sets `deviation`."""
        places = dict.fromkeys(self.calls, 0)
        gap = size = 0.0

        def repeat(name: str, router: Selector, chances: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal gap, size
            exact, chosen = self.calls[name][places[name]]
            places[name] += 1
            gap += float((chances.detach().cpu().to(exact.dtype) - exact).square().sum())
            size += float(exact.square().sum())
            chosen = chosen.to(chances.device)
            return router.taken(chances, chosen), chosen

        with contextlib.ExitStack() as hooks:
            for name, router in routers(model).items():
                hook = router.register_forward_hook(lambda router, i, _, name=name: repeat(name, router, i[0]))
                hooks.callback(hook.remove)
            yield
        self.deviation = (gap / size) ** 0.5 if size else 0.0


def has_experts(model: nn.Module) -> bool:
    """Return whether `model` chooses experts."""
    return bool(routers(model))


def learns_elsewhere(name: str, alive: Collection[str]) -> bool:
    """Return whether another expert's tensor of that layer is among the names `alive`.

    No token of a small batch that counts may have chosen this one.
    """
    layer, marker, rest = name.partition(".experts.")
    tensor = rest.partition(".")[2]
    others = (other.partition(".experts.") for other in alive)
    return bool(marker) and any(there == layer and it.partition(".")[2] == tensor for there, _, it in others)


def routers(model: nn.Module) -> dict[str, Selector]:
    """Return the modules that choose, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Selector)}


AGREEING_NATS = 1e-4  # below this KL a student and its teacher differ by rounding only


@dataclass(frozen=True)
class _Precision:
    """Bars of the exact checks.

    rounding: relative difference of losses; gradient: of a tensor's gradient; rise: how much each tensor's step of a
    finite difference changes the loss, far above rounding and still small, and most: all tensors' steps together;
    difference: of finite differences from the gradient of one tensor, and of all together, relative.
    """

    rounding: float
    gradient: float
    rise: float
    most: float
    difference: float
    difference_of_all: float


EXACT = _Precision(1e-8, 1e-8, 1e-7, math.inf, 1e-5, 1e-7)
IN_PLACE = _Precision(1e-5, 2e-3, 1e-3, 8e-3, 2e-2, 1e-3)


@dataclass(frozen=True)
class Recipe:
    """What will be trained, and on what first.

    batch: the first one. rows: what each of its segments has to be, by the documents. vocab_size: of the tokenizer.
    rate: the first step's multiplier of the learning rates. tuned: the model is a pretrained one, and perhaps only an
    adapter is trained. decode: ids to text, for messages.
    """

    model: Decoder
    objective: Objective
    optimizer: Optimizer
    batch: Batch
    rows: Sequence[SourceRow]
    vocab_size: int
    rate: float = 1.0
    seed: int = 0
    tuned: bool = False
    decode: Decode | None = None


def prove(recipe: Recipe, events: Events) -> list[dict[str, object]]:
    """Run every check on a part of the recipe's first batch; returns the result of each.

    Raises ProofError at the first failure, naming the tensor or the row. The model is left as it was.
    """
    model, tuned = recipe.model, recipe.tuned
    proof = _Proof(recipe)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("targets and borders", lambda: require_targets(recipe.batch, recipe.rows, recipe.decode)),
        (
            "first loss",
            lambda: require_first_loss(model, recipe.objective, proof.batch, recipe.rows, recipe.vocab_size, tuned),
        ),
        ("every tensor gets a gradient", proof.reaches_all),
        ("gradient in the compute type", proof.agrees),
        ("a token sees what is before it", lambda: require_sight(proof.exact, proof.few, recipe.rows)),
        ("packed = unpacked, accumulated = big batch", proof.packs_and_accumulates),
        ("finite differences", proof.finite_differences),
        (
            "the loss is what its formula says",
            lambda: require_definition(proof.exact, recipe.objective, proof.few),
        ),
        ("one step lowers the loss", proof.descends),
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
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in weights)
        model.load_trainable(weights)
        model.compute_dtype = dtype
        model.train(training)


@dataclass
class _Proof:
    """The checks, in the order in which they must run: each continues from the results of the one before it."""

    recipe: Recipe
    batch: Batch = field(init=False)
    small: Batch = field(init=False)
    few: Batch = field(init=False)  # for what is computed over and over
    exact: Decoder = field(init=False)
    half: dict[str, Tensor] = field(init=False, default_factory=dict)  # gradients in the compute type
    half_mean: float = field(init=False, default=0.0)
    half_chances: float = field(init=False, default=0.0)
    kind: torch.dtype = field(init=False)
    mean: float = field(init=False, default=0.0)  # loss of `small` in float64
    dead: list[str] = field(init=False, default_factory=list)
    experts: ExpertChoice = field(init=False, default_factory=ExpertChoice)  # of the last exact gradient

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.model, self.objective, self.tuned = recipe.model, recipe.objective, recipe.tuned
        self.rows, self.vocab_size, self.seed = recipe.rows, recipe.vocab_size, recipe.seed
        self.batch = recipe.objective.annotated(recipe.batch)

    def reaches_all(self) -> str:
        """Every tensor gets a gradient. It may be zero at the first step only; see `finite_differences`."""
        require_tied(self.model)
        for name, parameter in self.model.named_parameters():
            if not (parameter.requires_grad or self.tuned or name in self.model.constants()):
                raise ProofError(f"{name} is frozen", "it would never be trained: check the model's settings")
        if self.tuned:
            self.small, self.few = self._whole_rows(), tails(self.batch, EXACT_TOKENS, EXACT_SEGMENTS)
            self.kind, self.exact = self.model.compute_dtype, self.model
            if self.kind != torch.float32:
                self._record_experts()
                self._in_compute_type()
            self.exact.compute_dtype = torch.float32
        else:
            self.small = self.few = shorten(self.batch, EXACT_TOKENS, EXACT_SEGMENTS)
            self.exact = copy.deepcopy(self.model).to("cpu", torch.float64)
            self.exact.compute_dtype = torch.float64
        with self.experts.recorded(self.exact):
            self.mean = backward(self.exact, self.objective, [self.small])
        reached = [name for name, parameter in self.exact.trainable().items() if parameter.grad is not None]
        for name, parameter in self.exact.trainable().items():
            is_reached = parameter.grad is not None or learns_elsewhere(name, reached)
            if not is_reached or not torch.isfinite(gradient_of(parameter)).all():
                raise ProofError(f"{name} gets no finite gradient", "it would never be trained: report this")
            if not gradient_of(parameter).any():
                self.dead.append(name)
        return f"{len(self.exact.trainable())} tensors"

    def _whole_rows(self) -> Batch:
        """Rows as they are trained, at most as many as need the memory of a step in the compute type."""
        size = len(self.batch.inputs) * self.model.compute_dtype.itemsize // 4
        return whole_rows(self.batch, min(WHOLE_TOKENS, max(FEWEST_TOKENS, size)), self.objective.segments_per_row)

    def _record_experts(self) -> None:
        """Record what the exact computation will choose, where a model chooses: the compute type runs before it."""
        if not has_experts(self.model):
            return
        self.model.compute_dtype = torch.float32
        with self.experts.recorded(self.model):
            backward(self.model, self.objective, [self.small])
        self.model.zero_grad(set_to_none=True)
        self.model.compute_dtype = self.kind

    def _in_compute_type(self) -> None:
        """Loss and gradients as training will compute them, by the experts of the exact computation."""
        self.kind = self.model.compute_dtype
        with self.experts.repeated(self.model):
            self.half_mean = backward(self.model, self.objective, [self.small])
        self.half_chances = self.experts.deviation
        self.half = {name: gradient_of(p).cpu().clone() for name, p in self.model.trainable().items()}
        self.model.zero_grad(set_to_none=True)

    def agrees(self) -> str:
        """Loss and gradients in the compute type agree with those in the exact type."""
        if self.tuned and self.kind == torch.float32:
            return "float32, as in the run"
        if not self.tuned:
            self._in_compute_type()
        parameters, most = self.exact.trainable(), GRADIENT_TOLERANCE[self.kind]
        exact = {name: gradient_of(p) for name, p in parameters.items()}
        measured = replace(deviation(self.half, exact, self.half_mean, self.mean), chances=self.half_chances)
        self.half = {}

        def emulated(seed: int | None) -> Deviation:
            self.exact.zero_grad(set_to_none=True)
            with EmulatedRounding(self.kind, self.exact.options.vocab_size, seed), self.experts.repeated(self.exact):
                mean = backward(self.exact, self.objective, [self.small])
            rounded = {n: gradient_of(p) for n, p in parameters.items()}
            return replace(deviation(rounded, exact, mean, self.mean), chances=self.experts.deviation)

        most_of_tensor = 2 * most if self.tuned else most
        says = require_within(self.kind, measured, emulated(None), most, most_of_tensor, emulated)
        for name, parameter in parameters.items():
            parameter.grad = exact[name]
        return says

    def packs_and_accumulates(self) -> str:
        """Rows one by one, accumulated, give the loss and the gradient that they give packed in one batch."""
        bars = self.bars
        norms = [float(gradient_of(p).norm()) for p in self.exact.trainable().values()]
        pieces = list(row_by_row(self.small, self.objective.segments_per_row))
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
        """Name the first row that affects the rows before it or that they affect."""
        step = self.objective.segments_per_row
        with torch.no_grad():
            for i in range(1, len(pieces)):
                first = between(self.small, self.small.cu_seqlens[: (i + 1) * step + 1])
                packed = float(self.objective.batch_loss(self.exact, first)[0])
                alone = sum(float(self.objective.batch_loss(self.exact, p)[0]) for p in pieces[: i + 1])
                if not abs(packed - alone) <= self.bars.rounding * abs(alone):
                    name = self.rows[i * step] if i * step < len(self.rows) else ""
                    return f"row {i} ({name})" if name else f"row {i}"
        return "a row"

    def finite_differences(self) -> str:
        """Check the slope of the loss along one direction in all tensors at once; on failure, tensor by tensor.

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
        with self.experts.recorded(self.exact):
            backward(self.exact, self.objective, [self.few])
        dead = {name: parameters.pop(name) for name in [*parameters] if not gradient_of(parameters[name]).any()}
        for name, parameter in dead.items():
            never = name in self.dead and not learns_elsewhere(name, parameters)
            if never or moves_loss(parameter, self._loss, self.bars.rounding):
                raise ProofError(f"{name} gets a gradient of zero", "it would never be trained: report this")
        rise = self._rise
        rise *= min(1.0, self.bars.most / self.bars.rise / len(parameters))
        if not abs(self._difference(parameters, rise)) <= self.bars.difference_of_all:
            errors = {name: self._least_difference({name: parameter}) for name, parameter in parameters.items()}
            wrong = [name for name, off in errors.items() if off > self.bars.difference]
            if wrong:
                name = max(wrong, key=lambda name: errors[name])
                raise ProofError(f"{name}: its gradient is {errors[name]:.1e} off finite differences", "report this")
        return f"{len(parameters)} tensors, relative difference below {self.bars.difference:.0e}"

    def descends(self) -> str:
        """Check that a step of the optimizer, at its first rate or a share of that, lowers the loss on its batch."""
        chosen = stepped(self.exact)
        before = {name: p.detach().clone() for name, p in chosen.items()}
        loss, rounding, length = self._loss(), self.bars.rounding, ""
        for share in SHARES_OF_STEP:
            stepper = self.recipe.optimizer.bind(self.exact)
            stepper.step(self.recipe.rate * share)
            falls = loss - self._loss()
            with torch.no_grad():
                steps = {name: p - before[name] for name, p in chosen.items()}
                along = -sum(float((steps[n] * gradient_of(p)).sum()) for n, p in chosen.items())
                for name, p in chosen.items():
                    p.copy_(before[name])
            if not along > 0:
                raise ProofError("a step of the optimizer goes up the gradient", "the run would unlearn: report this")
            length = length or require_rate(self.recipe.optimizer, self.exact, steps, self.recipe.rate)
            if falls > rounding * loss or along <= rounding * loss:
                return f"by {falls:.1e} nats, {along:.1e} along the gradient; {length}"
        raise ProofError(
            f"no step of the optimizer lowers the loss of {loss:.3f} on its batch", "check the learning rates"
        )

    def _loss(self) -> float:
        with torch.no_grad(), self.experts.repeated(self.exact):
            total, count = self.objective.batch_loss(self.exact, self.few)
        return float(total) / count

    def _least_difference(self, parameter: dict[str, torch.nn.Parameter]) -> float:
        """Return the smallest difference for one tensor over several steps; a wrong gradient is wrong along each.

        A tensor with hardly any gradient moves far for the loss to change, and the loss bends on the way: what is left
        of that after the smallest step is taken off by Richardson's extrapolation from half of it, and the mean over a
        few directions outweighs the rounding.
        """
        least = math.inf
        for number, part in enumerate(PARTS):
            least = min(least, abs(self._difference(parameter, self._rise / part, number)))
            if least <= self.bars.difference:
                return least
        errors = []
        for number in range(len(PARTS), len(PARTS) + DIRECTIONS):
            bent, less = (self._difference(parameter, self._rise / part, number) for part in (PARTS[-1], 2 * PARTS[-1]))
            errors.append((4 * less - bent) / 3)
        return min(least, abs(math.fsum(errors)) / len(errors))

    def _difference(self, parameters: dict[str, torch.nn.Parameter], rise: float, direction_number: int = 0) -> float:
        """Relative difference of the measured slope from the gradient's along a direction in `parameters`.

        rise: the intended change of the loss by each tensor's step.
        """
        expected, is_short = 0.0, False
        losses: list[float] = []
        with torch.no_grad():
            for sign in (+1, -2, +1):  # the last puts the weights back
                random = torch.Generator().manual_seed(self.seed + 1 + direction_number)
                for p in parameters.values():
                    grad = gradient_of(p)
                    direction = torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device)
                    upwards = 1.0 if (grad * direction).sum() >= 0 else -1.0  # or it could cancel the gradient
                    direction.mul_(upwards * grad.norm() / direction.norm()).add_(grad).div_(grad.norm() ** 2)
                    share = FARTHEST * p.numel() ** 0.5 / (self._rise * float(direction.norm()))
                    direction.mul_(min(1.0, share))
                    is_short |= share < 1
                    expected += float((grad * direction).sum()) if not losses else 0.0
                    p.add_(direction, alpha=sign * rise)
                if len(losses) < 2:
                    with self.experts.repeated(self.exact):  # or the loss would jump where a router chooses others
                        total, count = self.objective.batch_loss(self.exact, self.few)
                    losses.append(float(total) / count)
        measured = (losses[0] - losses[1]) / (2 * rise)
        rounding = FLOAT32_NATS / rise if self.tuned and is_short else 0.0
        return math.copysign(max(0.0, abs(measured - expected) - rounding), measured - expected) / abs(expected)

    @property
    def bars(self) -> _Precision:
        return IN_PLACE if self.tuned else EXACT

    @property
    def _rise(self) -> float:
        """The step's size: smaller when the loss is small already, as a student's near its teacher."""
        return self.bars.rise * (min(1.0, self.mean / SMALL_LOSS_NATS) if self.tuned else 1.0)


def require_first_loss(
    model: Decoder, objective: Objective, batch: Batch, rows: Sequence[SourceRow], vocab_size: int, tuned: bool
) -> str:
    """Check that the first loss is what it must be; return it in words.

    rows: what `batch` is made of. tuned: the model is a pretrained one. Raises ProofError.
    """
    with torch.no_grad():
        total, count = objective.batch_loss(model, batch)
    named = "; ".join(map(str, rows[:3]))
    if count == 0:
        raise ProofError(f"the first batch has nothing to learn from: {named}", "check these rows of your data")
    loss, expected = float(total) / count, math.log(vocab_size)
    if objective.first_loss is not None:
        if not abs(loss - objective.first_loss) < 0.05:
            raise ProofError(
                f"the first loss is {loss:.3f}, and it is {objective.first_loss:.3f} for every model",
                f"the base is not what the adapter begins as: check these rows: {named}",
            )
        return f"{loss:.3f}, as it must be"
    if tuned:
        return _of_pretrained(loss, objective.reference(model, batch), named, objective, vocab_size)
    if not abs(loss - expected) < 0.1 * expected:
        raise ProofError(
            f"the first loss is {loss:.3f}, an untrained model's is ln({vocab_size}) = {expected:.3f}",
            f"the first weights or the targets are wrong: check the model's settings and these rows: {named}",
        )
    return f"{loss:.3f} nats, ln(V) = {expected:.3f}"


def _of_pretrained(
    loss: float, reference: tuple[float, int] | None, named: str, objective: Objective, vocab_size: int
) -> str:
    """Check the first loss of a pretrained model; return it in words.

    reference: the teacher's own loss as a sum of nats and a count; None without a teacher.
    """
    expected = math.log(vocab_size)
    who, nats = ("base", loss) if reference is None else ("teacher", reference[0] / reference[1])
    if not nats < 1.25 * expected:
        raise ProofError(
            f"the {who} finds these rows less likely than guessing: {nats:.3f} nats, ln({vocab_size}) = {expected:.3f}",
            f"its tokenizer or its template does not fit it, or these rows are no text: {named}",
        )
    if reference is None:
        return f"{loss:.3f} nats, guessing is {objective.guessing(vocab_size)}"
    if loss < AGREEING_NATS:
        raise ProofError(
            f"student and teacher already agree: KL {loss:.1e} nats on the first rows",
            "there is nothing to learn: choose a smaller student, or other rows",
        )
    return f"{loss:.3f} from the teacher, who pays {nats:.3f} nats; guessing is ln(V) = {expected:.3f}"


# tokens from the start of a row that stay in a shortened row: trained attention rests on the first tokens, and without
# them bfloat16 gives another gradient (measured: 4 % off with them, up to 53 % without, on Gemma 3 270M)
ROW_HEAD_TOKENS = 4


def shorten(batch: Batch, tokens: int, segments: int) -> Batch:
    """Cut a packed batch to its beginning: at most `tokens` and `segments`, in at least two segments."""
    n = min(tokens, len(batch.inputs))
    cuts = [int(c) for c in batch.cu_seqlens if c < n][:segments]
    if len(cuts) == segments:
        n = min(n, int(batch.cu_seqlens[segments]))
    edges = {*cuts, n}
    if len(edges) < 3 and n > 2:
        edges.add(n // 3)
    return between(batch, np.array(sorted(edges), dtype=batch.cu_seqlens.dtype))


def whole_rows(batch: Batch, tokens: int, step: int) -> Batch:
    """Take as many whole rows of `step` segments, from the first on, as fit into `tokens`.

    Where not even two rows fit, take the `tails` of two.
    """
    num_rows = (len(batch.cu_seqlens) - 1) // step
    ends = batch.cu_seqlens[step::step]
    fitting = int((ends <= tokens).sum())
    if fitting >= min(2, num_rows):
        return between(batch, batch.cu_seqlens[: fitting * step + 1])
    return tails(batch, tokens, min(2, num_rows) * step)


def tails(batch: Batch, tokens: int, segments: int) -> Batch:
    """Take the ends of the first `segments` rows, where answers are, after their first tokens; at most `tokens`."""
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
    shares = None if batch.shares is None else batch.shares[: len(pieces)]
    return Batch(batch.inputs[place], batch.targets[place], edges, positions, record, shares=shares)


def between(batch: Batch, edges: np.ndarray) -> Batch:
    """Take the part of a batch between the first and the last edge, its segments bounded by `edges` (S+1,)."""
    first, last = int(edges[0]), int(edges[-1])
    positions = np.concatenate([np.arange(b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    record = None if batch.record is None else batch.record[first:last]
    start = int(np.searchsorted(batch.cu_seqlens, first))
    shares = None if batch.shares is None else batch.shares[start : start + len(edges) - 1]
    return Batch(
        batch.inputs[first:last], batch.targets[first:last], edges - edges[0], positions, record, shares=shares
    )


def row_by_row(batch: Batch, step: int) -> Iterator[Batch]:
    """Rows of `step` segments, one by one."""
    for i in range(0, len(batch.cu_seqlens) - 1, step):
        yield between(batch, batch.cu_seqlens[i : i + step + 1])
