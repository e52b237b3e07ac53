"""Whether the proof refuses what is wrong and nothing that is right: faults put in on purpose, and sound recipes.

python bench/proof_faults.py faults [STRIDE [LIKE]]  faults, in every recipe that they can befall: refused by what
python bench/proof_faults.py families [FAMILY...]    faults of LoRA on text, and of recurrences, family by family
python bench/proof_faults.py sound [0-4 [STRIDE]]  architecture x adapter x objective x type: passed, or refused by what
python bench/proof_faults.py model FILE [SIZE [ADAPTERS [TYPES]]]  a pretrained model on four rows of plain text
python bench/proof_faults.py model-faults FILE [SIZE [ADAPTER]]    the faults on a pretrained model
python bench/proof_faults.py rows [0-4]            the gate's rows: sound ones refused, damaged ones found, type by type

`sound` prints how far the gradient in the type was off, beside what emulated rounding says: the bars in
settle/train/proof/compute_type.py were set on seeds below 100 and judged on seeds from 100 on.
STRIDE: every so many cells. SIZE: tokens of a row. On a pretrained model products of bfloat16 are computed in float32
and rounded, as hardware for bfloat16 does it (bench/proof.py).
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from proof import QuickBfloat16  # noqa: E402

from settle.base.errors import ProofError  # noqa: E402
from settle.base.event_log import Events  # noqa: E402
from settle.base.registry import part, part_names  # noqa: E402
from settle.data.batches import Batch  # noqa: E402
from settle.evaluate.gate.diagnose import damaged_rows  # noqa: E402
from settle.formats.gguf import rounded  # noqa: E402
from settle.formats.gguf.types import GGML, exported, ggml_type  # noqa: E402
from settle.model.adapters.dora import DoRA  # noqa: E402
from settle.model.adapters.lora import LoRA  # noqa: E402
from settle.model.config import DeltaNet, Mamba2  # noqa: E402
from settle.model.decoder import Decoder  # noqa: E402
from settle.model.layers import attention, delta_net, mamba2, short_convolution  # noqa: E402
from settle.model.layers.mixer import Recurrence  # noqa: E402
from settle.model.layers.packed_sequences import RotationTable  # noqa: E402
from settle.model.pretrained import Pretrained  # noqa: E402
from settle.shrink.types import ggml  # noqa: E402
from settle.train.objectives import Objective, Preferences, on_device  # noqa: E402
from settle.train.objectives._divergence import LinearDivergence  # noqa: E402
from settle.train.objectives.decision import Decision  # noqa: E402
from settle.train.objectives.distill import Distill  # noqa: E402
from settle.train.objectives.dpo import DPO  # noqa: E402
from settle.train.objectives.next_token import NextToken  # noqa: E402
from settle.train.optimizers import Stepper  # noqa: E402
from settle.train.optimizers.adamw import AdamStepper, AdamW  # noqa: E402
from settle.train.optimizers.muon import Muon, MuonStepper  # noqa: E402
from settle.train.proof import (  # noqa: E402
    Recipe,
    compute_type,  # noqa: E402
    prove,
)
from settle.train.teacher import LiveTeacher  # noqa: E402
from tests.train.source_rows import source_rows  # noqa: E402

ADAPTERS = {"scratch": None, "full": None, "lora": LoRA(rank=4, dropout=0.1), "dora": DoRA(rank=4)}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPTIONS = 4  # of a decision


def drawn(vocab_size: int, seed: int, supervised: bool) -> Batch:
    """Four to six rows of 4 to 60 tokens; of supervised ones about the second half is learned."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 60, random.integers(4, 7) // 2 * 2)
    tokens = random.integers(0, vocab_size, lengths.sum() + 1)
    positions = np.concatenate([np.arange(n) for n in lengths])
    targets = tokens[1:].copy()
    if supervised:
        targets[np.concatenate([np.arange(n) < n // 2 for n in lengths])] = -1
    return Batch(tokens[:-1].copy(), targets, np.cumsum([0, *lengths]).astype(np.int32), positions)


def recipe(family: str, adapter: str, objective: str, dtype: str, seed: int, optimizer: str = "adamw") -> Recipe:
    """Return a sound recipe of a cell."""
    tuned = adapter != "scratch"
    tiny = part("model/architectures", family).TINY
    model = tiny.build(seed=seed)
    method = ADAPTERS[adapter]
    if method is not None:
        method.apply(model, seed=seed + 1)
    model.compute_dtype = TYPES[dtype]
    data = drawn(tiny.vocab_size, seed, tuned)
    learned: Objective = {"dpo": DPO}.get(objective, NextToken)()
    if objective == "distill":
        teacher = tiny.build(seed=seed + 2)
        teacher.freeze()
        kind = ("forward", "reverse", "js")[seed % 3]
        learned = Distill(kind=kind, temperature=1 + seed % 2, text=0.2 * (seed % 2)).with_teacher(LiveTeacher(teacher))
    elif objective == "decision":
        data, learned = decisions(data, seed), Decision(labels=list(range(3, 3 + OPTIONS)), scale=0.5 + seed % 2)
    rule = {"adamw": AdamW, "muon": Muon}[optimizer]()
    return Recipe(model, learned, rule, data, source_rows(data), tiny.vocab_size, 0.1, seed, tuned)


def decisions(data: Batch, seed: int) -> Batch:
    """Return the rows as decisions: the last token of each is a label, and shares of the options are drawn."""
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(OPTIONS), len(data.cu_seqlens) - 1).astype(np.float32)
    shares[::2, -1] = -1  # every second row has an option less
    shares[::2, :-1] /= shares[::2, :-1].sum(1, keepdims=True)
    targets, last = np.full_like(data.targets, -1), data.cu_seqlens[1:] - 1
    targets[last] = 3 + shares.argmax(1)
    return replace(data, targets=targets, shares=shares)


def cells() -> Iterator[tuple[str, str, str, str]]:
    for family, adapter, dtype in itertools.product(part_names("model/architectures"), ADAPTERS, TYPES):
        for objective in ("next_token", "dpo", "distill", "decision"):
            is_tuned, is_adapted = adapter != "scratch", adapter in ("lora", "dora")
            is_possible = {"next_token": True, "dpo": is_adapted, "distill": is_tuned, "decision": is_tuned}
            if is_possible[objective]:
                yield family, adapter, objective, dtype


def refusal(what: Recipe) -> str:
    """Return the check that refused, or nothing."""
    shown: list[str] = []
    try:
        prove(what, Events(listeners=[lambda event: shown.append(event.check)]))
    except ProofError as e:
        return f"{shown[-1]}: {e.what}"
    return ""


# --- faults ---


class WrongBackward(torch.autograd.Function):
    """The identity, whose backward is `factor` times too long, and `noise` of its length off, in one type."""

    @staticmethod
    def forward(ctx, x, dtype, factor, noise):
        ctx.is_wrong, ctx.factor, ctx.noise = x.dtype == dtype, factor, noise
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if not ctx.is_wrong:
            return grad, None, None, None
        turned = torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)).to(grad.dtype)
        turned = turned * (grad.norm() / turned.norm()) * ctx.noise
        return grad * ctx.factor + turned, None, None, None


def wrong_backward(dtype: torch.dtype, factor: float, noise: float = 0.0) -> Callable[[Recipe], Recipe]:
    def put_in(what: Recipe) -> Recipe:
        norm = what.model.model.norm
        norm.register_forward_hook(lambda module, args, out: WrongBackward.apply(out, dtype, factor, noise))
        return what

    return put_in


def targets(change: Callable[[Batch], np.ndarray]) -> Callable[[Recipe], Recipe]:
    return lambda what: replace(what, batch=replace(what.batch, targets=change(what.batch)))


def masked(batch: Batch, wanted: np.ndarray) -> np.ndarray:
    return np.where(batch.targets >= 0, wanted, -1)


def permuted(batch: Batch) -> np.ndarray:
    out = batch.targets.copy()
    there = np.flatnonzero(out >= 0)
    out[there] = np.roll(out[there], 3)
    return out


def one_segment(what: Recipe) -> Recipe:
    edges = what.batch.cu_seqlens[[0, -1]]
    return replace(what, batch=replace(what.batch, cu_seqlens=edges, positions=np.arange(edges[-1])))


def shifted_border(what: Recipe) -> Recipe:
    edges = what.batch.cu_seqlens.copy()
    edges[1] += 1
    return replace(what, batch=replace(what.batch, cu_seqlens=edges))


def mask_from(diagonal: int):
    def mask(self, length, group, dtype, window=None):
        unseen = torch.full((length, length), float("-inf"), dtype=dtype, device=self.device)
        past = unseen.tril(-window) if window is not None and window < length else 0
        return (unseen.triu(diagonal) + past).repeat(group, 1)

    return patch.object(RotationTable, "mask", mask)


def angles_times(factor: float):
    own = RotationTable.angles
    return patch.object(RotationTable, "angles", lambda self, length: own(self, length) * factor)


def uphill():
    own = AdamStepper.step
    return patch.object(AdamStepper, "step", lambda self, scale: own(self, -scale))


def nothing_seen():
    own = attention.attend_bucket

    def attend(qkv, bias, bucket, table, scoring):
        out, saved = own(qkv, bias, bucket, table, scoring)
        return out * 0, saved

    return patch.object(attention, "attend_bucket", attend)


def swapped_loss(objective: type[Objective], change: Callable[[Tensor, Tensor, int], Tensor]):
    """`change` the sum of an objective's loss: sum, log-probabilities (N, V) of the model, count."""
    own = objective.batch_loss

    def batch_loss(self, model, batch):
        total, count = own(self, model, batch)
        inputs, targets, cu_seqlens = on_device(model, batch)
        _, head = model.head_operands()
        logits = model(inputs, cu_seqlens)[targets >= 0] @ head.t().to(model.compute_dtype)
        return change(total, logits, count), count

    return patch.object(objective, "batch_loss", batch_loss)


def smoothed(total: Tensor, logits: Tensor, count: int) -> Tensor:
    return 0.9 * total - 0.1 * torch.log_softmax(logits, -1).mean(-1).sum()


def with_z_loss(total: Tensor, logits: Tensor, count: int) -> Tensor:
    return total + 1e-3 * logits.logsumexp(-1).square().sum()


def reversed_preferences():
    own = DPO._ranked

    def ranked(self, *args):
        base, tuned, rewards = own(self, *args)
        return Preferences(base, tuned, -rewards)

    return patch.object(DPO, "_ranked", ranked)


def reversed_divergence():
    """Reverse the divergence, or exchange the shares of the Jensen-Shannon divergence."""
    own = LinearDivergence.forward

    def forward(ctx, hidden, cast, head, targets, teacher, measure, *rest):
        kind = {"forward": "reverse", "reverse": "forward"}.get(measure.kind, "js")
        mixture = 0.8 if kind == "js" else measure.mixture
        return own(ctx, hidden, cast, head, targets, teacher, measure._replace(kind=kind, mixture=mixture), *rest)

    return patch.object(LinearDivergence, "forward", staticmethod(forward))


def other_heat():
    return patch.object(Decision, "heat", property(lambda self: 1.3 * (self.scale or 1.0)))


def absent_options():
    """Score a decision's options that a row does not have like the others."""
    own = Decision.scores
    return patch.object(Decision, "scores", lambda self, m, i, c, shares: own(self, m, i, c, shares.clamp_min(0)))


def other_labels():
    """Exchange the labels of a decision in the loss."""
    own = Decision.scores
    return patch.object(Decision, "scores", lambda self, m, i, c, s: own(self, m, i, c, s.clamp_min(0)).roll(1, 1))


def stale_head():
    """Make the output table a copy of what it was when it was first used."""
    own, copies = Decoder.head_operands, {}

    def head_operands(self):
        cast, _ = own(self)
        return (copies.setdefault((id(self), cast.dtype), cast.detach().clone()),) * 2

    return patch.object(Decoder, "head_operands", head_operands)


def rate_times(factor: float, stepper: type[Stepper]):
    own = stepper.step
    return patch.object(stepper, "step", lambda self, scale: own(self, scale * factor))


def recurrences_times(convolve=None, scan=None):
    """Replace the convolution and the scan of every recurrence: each is given its own, and what it is called with."""
    stack = ExitStack()
    for module, name, change in (
        *((module, "convolve", convolve) for module in (delta_net, mamba2, short_convolution)),
        *((module, "scan", scan) for module in (delta_net, mamba2)),
    ):
        if change is not None:
            stack.enter_context(patch.object(module, name, partial(change, getattr(module, name))))
    return stack


def leak(of_convolution: bool, of_state: bool):
    """Run each batch through a recurrence as one document, and begin anew at borders what shall not leak."""

    def whole(self, rows, packing):
        edges = list(itertools.pairwise(packing.bounds))

        def apart(own, *args, along):
            pieces = [own(*(x.narrow(along, a, b - a) for x in args if x.ndim > along)) for a, b in edges]
            return torch.cat([piece[0] for piece in pieces], along), pieces[-1][1]

        def convolve(own, x, taps, *state):
            return apart(lambda piece: own(piece, taps), x, along=1)

        def scan(own, q, k, v, decay, rate=None, *state):
            inputs = [x for x in (q, k, v, decay, rate) if x is not None]
            return apart(own, *inputs, along=2)

        with recurrences_times(None if of_convolution else convolve, None if of_state else scan):
            return self.mix(rows.unsqueeze(0), self.weights())[0].squeeze(0)

    return patch.object(Recurrence, "whole", whole)


def scanned(decay: float = 1.0, backward: float = 1.0):
    """Make states decay `decay` times as fast, and what is read of them flow back `backward` times."""

    def scan(own, q, k, v, log_decay, *rest):
        out, state = own(q, k, v, log_decay * decay, *rest)
        return WrongBackward.apply(out, out.dtype, backward, 0.0), state

    return recurrences_times(scan=scan)


def reversed_taps():
    def convolve(own, x, taps, *state):
        return own(x, [taps[0].flip(-1), *taps[1:]], *state)

    return recurrences_times(convolve=convolve)


def recurs(family: str, adapter: str, objective: str, dtype: str) -> bool:
    return any(layer.recurrence for layer in part("model/architectures", family).TINY.options().layers)


def has_state(family: str, adapter: str, objective: str, dtype: str) -> bool:
    layers = part("model/architectures", family).TINY.options().layers
    return any(isinstance(layer.recurrence, DeltaNet | Mamba2) for layer in layers)


def learns(*objectives: str) -> Callable[[str, str, str, str], bool]:
    return lambda family, adapter, objective, dtype: objective in objectives


def trains_tied(family: str, adapter: str, objective: str, dtype: str) -> bool:
    return adapter in ("scratch", "full") and part("model/architectures", family).TINY.options().tied


@dataclass(frozen=True)
class Fault:
    """change: of the recipe. patched: of the code. befalls: which of the cells."""

    name: str
    change: Callable[[Recipe], Recipe] = lambda what: what
    patched: Callable[[], object] | None = None
    half_only: bool = False
    optimizer: str = "adamw"
    befalls: Callable[[str, str, str, str], bool] = lambda *cell: True


HALF = torch.bfloat16
FAULTS = [
    Fault("no causal mask", patched=lambda: mask_from(10_000)),
    Fault("causal mask off by one", patched=lambda: mask_from(2)),
    Fault("nothing is seen", patched=nothing_seen),
    Fault("targets are the inputs", targets(lambda b: masked(b, b.inputs))),
    Fault("targets two ahead", targets(lambda b: masked(b, np.roll(np.where(b.targets >= 0, b.targets, 0), -1)))),
    Fault("targets permuted", targets(permuted)),
    Fault("every second token is learned", targets(lambda b: np.where(np.arange(len(b.targets)) % 2, b.targets, -1))),
    Fault("all documents in one segment", one_segment),
    Fault("a document's border one token late", shifted_border),
    Fault("no positions", patched=lambda: angles_times(0.0)),
    Fault("rotations times 7", patched=lambda: angles_times(7.0)),
    Fault("bfloat16 backward times 0.75", wrong_backward(HALF, 0.75), half_only=True),
    Fault("bfloat16 backward times 1.1", wrong_backward(HALF, 1.1), half_only=True),
    Fault("bfloat16 backward times 1.25", wrong_backward(HALF, 1.25), half_only=True),
    Fault("bfloat16 backward, 25 % noise", wrong_backward(HALF, 1.0, 0.25), half_only=True),
    Fault("steps go uphill", patched=uphill),
    Fault("label smoothing 0.1", patched=lambda: swapped_loss(NextToken, smoothed), befalls=learns("next_token")),
    Fault("z-loss 1e-3", patched=lambda: swapped_loss(NextToken, with_z_loss), befalls=learns("next_token")),
    Fault("the rejected answer is preferred", patched=reversed_preferences, befalls=learns("dpo")),
    Fault("the divergence is another one", patched=reversed_divergence, befalls=learns("distill")),
    Fault("label smoothing 0.1, distilled", patched=lambda: swapped_loss(Distill, smoothed), befalls=learns("distill")),
    Fault("a decision at another temperature", patched=other_heat, befalls=learns("decision")),
    Fault("a decision among absent options", patched=absent_options, befalls=learns("decision")),
    Fault("the labels of a decision exchanged", patched=other_labels, befalls=learns("decision")),
    Fault("a tied head is a stale copy", patched=stale_head, befalls=trains_tied),
    Fault("rates times 1e-4", patched=lambda: rate_times(1e-4, AdamStepper)),
    Fault("Muon's rates times 1e-4", patched=lambda: rate_times(1e-4, MuonStepper), optimizer="muon"),
    Fault("documents leak by a convolution", patched=lambda: leak(True, False), befalls=recurs),
    Fault("documents leak by a state", patched=lambda: leak(False, True), befalls=has_state),
    Fault("the taps of a convolution reversed", patched=reversed_taps, befalls=recurs),
    Fault("states decay twice as fast", patched=lambda: scanned(decay=2.0), befalls=has_state),
    Fault("a scan's backward times 1.1", patched=lambda: scanned(backward=1.1), befalls=has_state),
    Fault("rates times 10", patched=lambda: rate_times(10.0, AdamStepper)),
]  # fmt: skip


def faults(like: str = "") -> None:
    for fault in (fault for fault in FAULTS if like in fault.name):
        passed, by = [], {}
        kinds = [c for c in cells() if fault.befalls(*c) and (not fault.half_only or c[3] == "bfloat16")]
        for number, cell in enumerate(kinds):
            if number % STRIDE:
                continue
            with ExitStack() as stack:
                what = fault.change(recipe(*cell, seed=number, optimizer=fault.optimizer))
                if fault.patched:
                    stack.enter_context(fault.patched())
                why = refusal(what)
            if why:
                by[why.split(":")[0]] = by.get(why.split(":")[0], 0) + 1
            else:
                passed.append("-".join(cell))
        shown = ", ".join(f"{count} by {check!r}" for check, count in by.items())
        print(f"{fault.name:36} refused {sum(by.values())} of {sum(by.values()) + len(passed)}: {shown}", flush=True)
        if passed:
            print("   passed:", ", ".join(passed), flush=True)


def families(*names: str) -> None:
    """Put each fault of LoRA on text into each family, in bfloat16 where it is one of it; a line a family."""
    total = [0, 0]
    every = part_names("model/architectures")
    for family in names or every:
        missed: list[str] = []
        planted = 0
        for fault in FAULTS:
            cell = (family, "lora", "next_token", "bfloat16" if fault.half_only else "float32")
            if fault.optimizer != "adamw" or not fault.befalls(*cell):
                continue
            with ExitStack() as stack:
                what = fault.change(recipe(*cell, seed=1000 + every.index(family)))
                if fault.patched:
                    stack.enter_context(fault.patched())
                planted += 1
                if not refusal(what):
                    missed.append(fault.name)
        total[0], total[1] = total[0] + planted - len(missed), total[1] + planted
        print(f"{family:20} {planted - len(missed)} of {planted} {'; '.join(missed)}", flush=True)
    print(f"all: {total[0]} of {total[1]}")


def sound(seeds: range) -> None:
    number, refused, worst = 0, [], {}
    own = compute_type.require_within

    def noted(dtype, measured, emulated, most, most_of_tensor, draw):
        key = str(dtype)
        name = measured.worst
        ratios = {
            "loss": (measured.loss, emulated.loss),
            "all": (measured.of_all, emulated.of_all),
            "scale": (abs(measured.scale), abs(emulated.scale)),
            "tensor": max(
                ((measured.tensors[n], emulated.tensors[n]) for n in measured.tensors),
                key=lambda p: p[0] / max(p[1], 1e-9),
            ),
            "worst": (measured.tensors[name], emulated.tensors[name]),
        }
        for what, (a, b) in ratios.items():
            worst.setdefault((key, what), []).append((a, b))
        return own(dtype, measured, emulated, most, most_of_tensor, draw)

    began = time.perf_counter()
    with patch("settle.train.proof.require_within", noted):
        for seed in seeds:
            for place, cell in enumerate(cells()):
                if (place + seed) % STRIDE:
                    continue
                why = refusal(recipe(*cell, seed=seed, optimizer="muon" if seed % 2 else "adamw"))
                number += 1
                print(f"  {number} {'-'.join(cell)}: {why or 'passed'}", flush=True)
                if why:
                    refused.append(f"{'-'.join(cell)} seed {seed}: {why}")
    for (key, what), pairs in worst.items():
        measured, emulated = np.array(pairs).T
        ratio = measured / np.maximum(emulated, 1e-12)
        print(
            f"{key} {what:7} measured {np.median(measured):.1e}, at most {measured.max():.1e}; emulated "
            f"{np.median(emulated):.1e}, at most {emulated.max():.1e}; ratio {np.median(ratio):.2f}, "
            f"99 in 100 {np.quantile(ratio, 0.99):.2f}, at most {ratio.max():.2f}"
        )
    seconds = (time.perf_counter() - began) / number
    print(f"sound recipes: {number - len(refused)} of {number} passed, {seconds:.2f} s each")


def pretrained_recipe(base: Pretrained, adapter: str, dtype: str, size: int) -> Recipe:
    """Return a sound recipe on four rows of `size` tokens of plain text."""
    text = Path(__file__).read_text()
    ids = base.tokenizer.encode(text[: size * 20])[: 4 * size + 1].astype(np.int64)
    lengths = [size] * 4
    data = Batch(ids[:-1].copy(), ids[1:].copy(), np.cumsum([0, *lengths]).astype(np.int32),
                 np.concatenate([np.arange(n) for n in lengths]))  # fmt: skip
    live = base.load(trainable=adapter == "full", dtype=TYPES[dtype])
    if ADAPTERS[adapter] is not None:
        ADAPTERS[adapter].apply(live, 0)
    live.compute_dtype = TYPES[dtype]
    return Recipe(live, NextToken(), AdamW(lr=2e-4), data, source_rows(data), live.options.vocab_size, 0.1, 0, True)


def model(path: str, size: str = "48", adapters: str = "lora,dora,full", types: str = "float32,bfloat16") -> None:
    base = Pretrained.open(Path(path))
    for adapter, dtype in itertools.product(adapters.split(","), types.split(",")):
        shown: list[object] = []
        with suppress(ProofError):
            prove(pretrained_recipe(base, adapter, dtype, int(size)), Events(listeners=[shown.append]))
        checks = [f"{'' if e.passed else 'REFUSED '}{e.check}: {e.detail}" for e in shown]
        passed = sum(e.passed for e in shown)
        print(
            f"{adapter} {dtype}, rows of {size}: {passed} of {len(shown)} checks passed",
            *checks,
            sep="\n   ",
            flush=True,
        )


def model_faults(path: str, size: str = "48", adapter: str = "lora") -> None:
    """Those of a half type in bfloat16, the others in float32, on one and the same model."""
    base = Pretrained.open(Path(path))
    for dtype in TYPES:
        what = pretrained_recipe(base, adapter, dtype, int(size))
        for fault in (fault for fault in FAULTS if fault.half_only == (dtype == "bfloat16")):
            with ExitStack() as stack:
                faulty = fault.change(what)
                if fault.patched:
                    stack.enter_context(fault.patched())
                why = refusal(faulty)
            what.model.model.norm._forward_hooks.clear()
            print(f"{fault.name:36} {adapter} {dtype}: {why or 'PASSED'}", flush=True)


def matrices(seed: int) -> dict[str, np.ndarray]:
    """Rows of 512 values as weights have them, and with heavier tails than those."""
    random = np.random.default_rng(seed)
    shape = (96, 512)
    normal = random.standard_normal(shape)
    return {
        "normal": normal,
        "tails": random.standard_t(3, shape),
        "columns": normal * np.exp(random.standard_normal(512)),
        "rows": normal * np.exp(1.5 * random.standard_normal((96, 1))),
        "shifted": normal + 1.0,
        "sparse": normal * (random.random(shape) < 0.2),
    }


DAMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeroed": lambda row: row * 0,
    "half zeroed": lambda row: np.where(np.arange(len(row)) < len(row) // 2, 0, row),
    "halved": lambda row: row / 2,
    "turned": lambda row: -row,
    "reversed": lambda row: row[::-1],
}


def rows(seeds: range) -> None:
    """Each type with the importance of an imatrix, as `settle shrink` quantizes, and where settle writes it without."""
    print("| type | quantizer | sound rows refused | " + " | ".join(DAMAGES) + " |")
    for kind in GGML:
        own = kind.lower() in exported()
        for is_own in (False, True) if own else (False,):
            refused = count = 0
            found = dict.fromkeys(DAMAGES, 0)
            for seed in seeds:
                importance = np.random.default_rng(seed).chisquare(1, 512).astype(np.float32) + 1e-3
                for wanted in matrices(seed).values():
                    wanted = wanted.astype(np.float32)
                    count += len(wanted)
                    refused += len(damaged_rows(quantized(wanted, kind, importance, is_own), wanted, kind, is_own))
                    for name, damage in DAMAGES.items():
                        there = quantized(np.apply_along_axis(damage, 1, wanted), kind, importance, is_own)
                        found[name] += len(damaged_rows(there, wanted, kind, is_own))
            shares = " | ".join(f"{number / count:.1%}" for number in found.values())
            print(f"| {kind} | {'own' if is_own else 'weighed'} | {refused} of {count:,} | {shares} |", flush=True)


def quantized(values: np.ndarray, kind: str, importance: np.ndarray, is_own: bool) -> np.ndarray:
    values = np.ascontiguousarray(values, np.float32)
    if is_own or not ggml_type(kind).quantized:
        return rounded(values, kind)
    return ggml.dequantize(ggml.quantize(values, kind, importance, 1), kind, np.empty(values.shape, np.float32))


STRIDE = 1
if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "faults":
        STRIDE = int(rest[0]) if rest else 1
        faults(*rest[1:])
    elif what == "families":
        families(*rest)
    elif what == "sound":
        first, last = (int(n) for n in rest[0].split("-")) if rest else (0, 4)
        STRIDE = int(rest[1]) if rest[1:] else 1
        sound(range(first, last + 1))
    elif what == "rows":
        first, last = (int(n) for n in rest[0].split("-")) if rest else (0, 4)
        rows(range(first, last + 1))
    elif what == "model-faults":
        with QuickBfloat16():
            model_faults(*rest)
    else:
        with QuickBfloat16():
            model(*rest)
