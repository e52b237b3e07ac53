"""Scores that are too large for a half type are found and computed in float32, where they are and only there."""

import copy

import pytest
import torch

from settle.model.decoder import Decoder, score_sizes, too_large
from settle.model.kv_cache import continued
from settle.train.objectives.next_token import NextToken
from tests.model.architectures.cases import CASES, random_model
from tests.model.large_scores import SCORE, with_large_scores

LENGTHS = [7, 30, 16, 21, 30]
BIASED = ["qwen2", "qwen2-windows", "llama-biases-tied"]


def drawn(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(0, vocab_size, (2, sum(LENGTHS)), generator=random)
    return inputs, targets, torch.tensor([0, *LENGTHS]).cumsum(0).int()


def gradient(model: Decoder, dtype: torch.dtype) -> torch.Tensor:
    model.compute_dtype = dtype
    model.zero_grad(set_to_none=True)
    total, count = NextToken().loss(model, *drawn(model.options.vocab_size))
    (total / count).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def off(part: torch.Tensor, exact: torch.Tensor) -> float:
    return float((part - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", CASES)
def test_ordinary_scores_stay_in_the_half_type(name: str) -> None:
    model = random_model(CASES[name])
    inputs, _, bounds = drawn(model.options.vocab_size)
    assert too_large(score_sizes(model, inputs, bounds)) == ()


@pytest.mark.parametrize("name", BIASED)
def test_large_scores_are_measured_and_named(name: str) -> None:
    model = with_large_scores(CASES[name])
    inputs, _, bounds = drawn(model.options.vocab_size)
    sizes = score_sizes(model, inputs, bounds)
    assert sizes[0] == pytest.approx(SCORE, rel=0.1) and too_large(sizes) == (0, 1)
    assert too_large([*sizes, 5.0]) == (0, 1)


@pytest.mark.parametrize("name", BIASED)
def test_the_gradient_of_large_scores_is_right_in_bfloat16(name: str) -> None:
    """Without scores in float32 it is nowhere near."""
    model = with_large_scores(CASES[name])
    exact = gradient(copy.deepcopy(model).double(), torch.float64)
    assert off(gradient(model, torch.bfloat16), exact) > 0.9
    model.float32_scores = (0, 1)
    assert off(gradient(model, torch.bfloat16), exact) < 0.25
    assert off(gradient(model, torch.float32), exact) < 1e-3


def test_the_gradient_is_no_worse_than_that_of_transformers(tmp_path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    part = CASES["qwen2"]
    ours = with_large_scores(part)
    config = part.to_hf_config()
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    own, names = dict(theirs.named_parameters()), part.hf_names()
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            own[names[name]].copy_(weight)
    exact = gradient(copy.deepcopy(ours).double(), torch.float64)
    ours.float32_scores = (0, 1)
    inputs, targets, bounds = drawn(part.vocab_size)
    theirs = theirs.to(torch.bfloat16).train()
    texts = zip(inputs.split(LENGTHS), targets.split(LENGTHS), strict=True)
    for text, wanted in texts:
        loss = torch.nn.functional.cross_entropy(theirs(text[None]).logits[0].float(), wanted, reduction="sum")
        (loss / len(inputs)).backward()
    own = dict(theirs.named_parameters())
    reference = torch.cat([own[names[name]].grad.double().flatten() for name, _ in ours.named_parameters()])
    assert off(gradient(ours, torch.bfloat16), exact) < off(reference, exact)


def test_what_grows_token_by_token_sees_the_same_scores() -> None:
    model = with_large_scores(CASES["qwen2"])
    prompts = [torch.arange(3, 12), torch.arange(20, 25)]
    model.compute_dtype, model.float32_scores = torch.bfloat16, (0, 1)
    grown = continued(model, prompts, [6, 6], [], temperature=0)
    whole = []
    with torch.no_grad():
        for prompt, tokens in zip(prompts, grown, strict=True):
            text = torch.cat([prompt, tokens])
            hidden = model(text, torch.tensor([0, len(text)]).int())
            whole.append(model.logits(hidden)[len(prompt) - 1 : -1].argmax(-1))
    assert all(torch.equal(a, b) for a, b in zip(grown, whole, strict=True))
