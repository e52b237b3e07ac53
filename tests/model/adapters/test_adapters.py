"""Adapters against PEFT on the same numbers, over every kind of frozen base; gradients against differences."""

import pytest
import torch
from torch import Tensor

from settle.base.errors import FormatError, UsageError
from settle.model import adapters
from settle.model.adapters.dora import DoRA
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.config import LinearShape
from settle.model.decoder import Decoder
from settle.model.layers.dequantize import quantize_nf4
from settle.model.layers.frozen_weights import FrozenBlocks, FrozenDense, FrozenNf4
from settle.model.layers.linear import Linear, Stack
from settle.model.layers.linear_adapter import LowRank, part_of_batch
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from tests.model.test_layers import OPTIONS, decoder
from tests.model.test_llama import packed, reference

METHODS = [LoRA(rank=4), LoRA(rank=3, rslora=True, targets=["q_proj", "down_proj"]), DoRA(rank=4, alpha=4.0)]
LENGTHS = [7, 9, 16, 1]
SHAPE = Llama.TINY.model_copy(update={"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})


def stir(model: Decoder, size: float = 0.1) -> None:
    """Make what is trained differ from its start."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(torch.randn(p.shape, generator=random).to(p.dtype), alpha=size)


def peft_model(model: Decoder, method: LoRA) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    base = reference(SHAPE)
    weights = {n: w if isinstance(w, Tensor) else w.dense(torch.float32) for n, w in model.weights().items()}
    base.load_state_dict(weights)
    targets = method.targets if method.targets == "all-linear" else list(method.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=method.rank, lora_alpha=method.alpha, use_rslora=method.rslora,
        use_dora=method.magnitude, target_modules=targets,
    )  # fmt: skip
    return get_peft_model(base, config)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", METHODS, ids=["lora", "some linears, rslora", "dora"])
def test_equals_peft(method: LoRA) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    ours = SHAPE.build(seed=1)
    method.apply(ours)
    stir(ours)
    theirs = peft_model(ours, method)
    state = adapters.state(ours)
    assert {n: t.shape for n, t in get_peft_model_state_dict(theirs).items()} == {n: t.shape for n, t in state.items()}
    set_peft_model_state_dict(theirs, state)
    inputs, targets, bounds = packed([24])
    logits = theirs(inputs[None]).logits[0]
    torch.testing.assert_close(ours.logits(ours(inputs, bounds)), logits, atol=1e-4, rtol=1e-4)

    torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum").backward()
    NextToken().loss(ours, inputs, targets, bounds)[0].backward()
    expected = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for name, p in state.items():
        found = expected.get(name, expected.get(f"{name}.weight"))
        # PEFT takes DoRA's lengths for constants: only the gradient of the magnitude is the same
        if not method.magnitude or "magnitude" in name:
            torch.testing.assert_close(p.grad, found, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("method", [LoRA(rank=3), DoRA(rank=3)], ids=["lora", "dora"])
def test_gradients_by_finite_differences(asked: dict, method: LoRA) -> None:
    model = decoder(asked)
    inputs, targets, bounds = packed([5, 9, 5, 1], vocab=32)
    before = model(inputs, bounds).detach()
    method.apply(model)
    model.double()
    torch.testing.assert_close(model(inputs, bounds), before, atol=1e-5, rtol=1e-5)
    stir(model)

    def loss() -> Tensor:
        return NextToken().loss(model, inputs, targets, bounds)[0]

    loss().backward()
    by_linear: dict[str, list[Tensor]] = {}
    for name, p in model.trainable().items():
        by_linear.setdefault(name.partition(".adapter.")[0], []).append(p)
    assert len(by_linear) < len(model.trainable())
    for (
        linear,
        parameters,
    ) in by_linear.items():  # all of a linear's at once, each in the direction that raises the loss
        places = [(p.view(-1), int(p.grad.abs().argmax())) for p in parameters]
        slopes = [p.grad.view(-1)[index] for p, (_, index) in zip(parameters, places, strict=True)]
        found = []
        for step in (1e-5, -2e-5, 1e-5):
            with torch.no_grad():
                for (flat, index), slope in zip(places, slopes, strict=True):
                    flat[index] += step * slope.sign()
                if len(found) < 2:
                    found.append(loss())
        expected = torch.stack(slopes).abs().sum()
        torch.testing.assert_close((found[0] - found[1]) / 2e-5, expected, atol=1e-6, rtol=1e-5, msg=linear)


def frozen_bases() -> dict[str, Decoder]:
    """The same numbers, kept densely, in Q8_0 blocks and in NF4; the dense ones are what the others stand for."""
    from gguf import GGMLQuantizationType, quants

    made = {}
    for kind in ("dense of Q8_0", "Q8_0", "dense of NF4", "NF4"):
        made[kind] = model = SHAPE.build(seed=1)
        for name, weight in list(model.weights().items()):
            if weight.ndim == 1:
                model.put(name, FrozenDense(weight))
            elif "Q8_0" in kind:
                raw = torch.from_numpy(quants.quantize(weight.detach().numpy(), GGMLQuantizationType.Q8_0))
                blocks = FrozenBlocks(raw, "Q8_0", tuple(weight.shape))
                model.put(name, blocks if kind == "Q8_0" else FrozenDense(blocks.dense(torch.float32)))
            else:
                nf4 = FrozenNf4(quantize_nf4(weight))
                model.put(name, nf4 if kind == "NF4" else FrozenDense(nf4.dense(torch.float32)))
    return made


@pytest.mark.parametrize("method", [LoRA(rank=4), DoRA(rank=4)], ids=["lora", "dora"])
def test_quantized_bases_compute_what_their_numbers_do(method: LoRA) -> None:
    inputs, targets, bounds = packed(LENGTHS)
    found = {}
    for kind, model in frozen_bases().items():
        method.apply(model)
        stir(model)
        loss, _ = NextToken().loss(model, inputs, targets, bounds)
        loss.backward()
        found[kind] = [loss.detach(), *(p.grad for p in model.trainable().values())]
        if not kind.startswith("dense"):
            kept = {type(w) for n, w in model.weights().items() if n.endswith("proj.weight")}
            assert kept == {FrozenBlocks if kind == "Q8_0" else FrozenNf4}
    torch.testing.assert_close(found["Q8_0"], found["dense of Q8_0"])
    torch.testing.assert_close(found["NF4"], found["dense of NF4"])


@pytest.mark.parametrize("method", METHODS, ids=["lora", "some linears, rslora", "dora"])
def test_merge_computes_the_same(method: LoRA) -> None:
    model = SHAPE.build(seed=1)
    method.apply(model)
    inputs, _, bounds = packed(LENGTHS)
    base = model(inputs, bounds)
    stir(model)
    adapted = model(inputs, bounds)
    assert (adapted - base).abs().max() > 1e-3
    other = SHAPE.skeleton("cpu")
    for name, numbers in adapters.Merged(model).items():
        other.put(name, numbers)
    torch.testing.assert_close(other(inputs, bounds), adapted, atol=1e-4, rtol=1e-4)
    with model.without_adapters():
        torch.testing.assert_close(model(inputs, bounds), base)
    adapters.remove(model)
    torch.testing.assert_close(model(inputs, bounds), base)


def test_state_goes_over_to_another_model() -> None:
    models = [SHAPE.build(seed=1) for _ in range(2)]
    for seed, model in enumerate(models):
        LoRA(rank=2).apply(model, seed)
    stir(models[0])
    adapters.load(models[1], adapters.state(models[0]))
    inputs, _, bounds = packed(LENGTHS)
    assert torch.equal(models[0](inputs, bounds), models[1](inputs, bounds))
    with pytest.raises(FormatError, match="lora_A"):
        adapters.load(models[1], {})


def test_only_the_adapter_is_trained() -> None:
    model = SHAPE.build(seed=1)
    names = LoRA(rank=2, lr_ratio=16.0).apply(model)
    assert len(names) == 7 * SHAPE.num_hidden_layers
    assert all(".adapter." in name for name in model.trainable())
    before = {n: (w if isinstance(w, Tensor) else w.dense(torch.float32)).clone() for n, w in model.weights().items()}
    stepper = AdamW().bind(model)
    assert {group.lr for group in stepper.groups} == {AdamW().lr, AdamW().lr * 16}
    inputs, targets, bounds = packed(LENGTHS)
    losses = []
    for _ in range(5):
        model.zero_grad()
        loss, count = NextToken().loss(model, inputs, targets, bounds)
        (loss / count).backward()
        stepper.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    after = {n: w if isinstance(w, Tensor) else w.dense(torch.float32) for n, w in model.weights().items()}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_nothing_is_computed_below_the_lowest_trainable() -> None:
    model = SHAPE.build(seed=1)
    LoRA(rank=2, targets=["model.layers.1.mlp.down_proj"]).apply(model)
    inputs, targets, bounds = packed(LENGTHS)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        loss, _ = NextToken().loss(model, inputs, targets, bounds)
    loss.backward()
    wide = [shape for shape in kept if shape[0] == len(inputs) and shape[-1] > 2]
    # what the last gate made and the final norm: no query, no probability, nothing of layer 0
    assert wide == [(len(inputs), 2 * SHAPE.intermediate_size), (len(inputs), SHAPE.hidden_size)]


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_layers_change_nothing_but_memory(every: int) -> None:
    inputs, targets, bounds = packed(LENGTHS)
    found = []
    for recompute in (0, every):
        model = SHAPE.build(seed=1)
        LoRA(rank=4, dropout=0.1).apply(model)
        stir(model)
        model.recompute = recompute
        kept: list[int] = []
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.append(t.nbytes) or t, lambda t: t):
            loss, _ = NextToken().loss(model, inputs, targets, bounds)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.trainable().values()], sum(kept)))
    (loss, gradients, plain), (again, repeated, less) = found
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, repeated, strict=True))
    assert less < plain * (0.25 if every == 1 else 0.75)


def test_dropout_of_a_part_of_a_batch_is_that_of_the_whole_in_its_model_alone() -> None:
    """Two models in one process, as two threads would have them; the part's numbers are those of the whole batch."""
    inputs, _, bounds = packed(LENGTHS)
    one, other = SHAPE.build(seed=1), SHAPE.build(seed=2)
    for model in (one, other):
        LoRA(rank=4, dropout=0.5).apply(model)
        stir(model)
        model.train()

    def output(model: Decoder, ids: Tensor, edges: Tensor) -> Tensor:
        torch.manual_seed(5)
        out: Tensor = model(ids, edges)
        return out

    first, second = int(bounds[1]), int(bounds[2])
    rows, edges = torch.arange(first, second), torch.tensor([0, second - first], dtype=bounds.dtype)
    whole, free = output(one, inputs, bounds), output(other, inputs[rows], edges)
    with part_of_batch(one, rows, len(inputs)):
        torch.testing.assert_close(output(one, inputs[rows], edges), whole[rows])
        assert torch.equal(output(other, inputs[rows], edges), free), "another model is computed as ever"
    assert not torch.allclose(output(one, inputs[rows], edges), whole[rows]), "afterwards it draws for itself"


def test_dropout_acts_in_training_only() -> None:
    model = SHAPE.build(seed=1)
    LoRA(rank=4, dropout=0.5).apply(model)
    stir(model)
    inputs, targets, bounds = packed(LENGTHS)
    model.eval()
    calm = model(inputs, bounds)
    assert torch.equal(calm, model(inputs, bounds))
    model.train()
    torch.manual_seed(1)
    first = model(inputs, bounds)
    torch.manual_seed(1)
    assert torch.equal(first, model(inputs, bounds))
    assert not torch.allclose(first, calm)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 256), (256, 64)], ids=["wide", "tall"])
@pytest.mark.parametrize("keep", ["dense", "NF4"])
def test_small_changes_are_not_rounded_away_in_half_precision(inputs: int, outputs: int, keep: str) -> None:
    random = torch.Generator().manual_seed(0)
    weight = FrozenNf4(quantize_nf4(torch.randn(outputs, inputs, generator=random))).dense(torch.bfloat16)
    linear = Linear(inputs, outputs)
    linear.put(FrozenDense(weight) if keep == "dense" else FrozenNf4(quantize_nf4(weight)))
    x = torch.randn(512, inputs, generator=random).to(torch.bfloat16)
    stack = Stack([(linear, 0)])
    before = stack.linear(x).float()
    linear.adapter = pair = LowRank(inputs, outputs, rank=2, scale=1.0)
    with torch.no_grad():
        pair.lora_A.normal_(generator=random)
        pair.lora_B.normal_(0, 2e-4 * before.std() / inputs**0.5, generator=random)
        added = x.float() @ pair.lora_A.T @ pair.lora_B.T
        assert added.std() < 2**-9 * before.std()
        change = stack.linear(x).float() - before
    assert 0.5 < (change * added).sum() / added.square().sum() < 1.5


def test_logits_of_a_narrow_table_are_widened_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SHAPE.build(seed=1)
    model.put("lm_head.weight", FrozenDense(model.head.to(torch.bfloat16)))
    hidden = torch.randn(5, SHAPE.hidden_size)
    expected = hidden @ model.weights()["lm_head.weight"].dense(torch.float32).T
    monkeypatch.setattr("settle.model.decoder._WIDENED", 10 * SHAPE.hidden_size)
    torch.testing.assert_close(model.logits(hidden), expected)


def test_targets_that_match_nothing_are_named() -> None:
    with pytest.raises(UsageError, match="q_porj.*did you mean q_proj"):
        LoRA(targets=["q_porj"]).apply(SHAPE.build(seed=1))


@pytest.mark.parametrize(("layers", "first"), [(2, 0), (6, 2), (12, 8), (30, 20), (32, 21)])
def test_the_last_third_is_four_layers_at_least(layers: int, first: int) -> None:
    names = [f"model.layers.{n}.{part}" for n in range(layers) for part in ("self_attn.q_proj", "mlp.gate")]
    wanted = [f"model.layers.{n}.self_attn.q_proj" for n in range(first, layers)]
    linears = {name: LinearShape(8, 8, only_named=name.endswith("mlp.gate")) for name in ["lm_head.other", *names]}
    assert LoRA(targets="last-third").targeted(linears) == wanted
