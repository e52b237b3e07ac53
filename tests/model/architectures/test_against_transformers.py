"""Every family against transformers on random weights that transformers itself has saved: logits, loss, gradients."""

import pytest
import torch
from torch import Tensor

from settle.formats.safetensors import read_safetensors
from settle.train.objectives.next_token import NextToken
from tests.model.architectures.cases import CASES, as_transformers_knows_it, score_factor

LENGTHS = [7, 30, 16, 1, 30]  # beyond the windows of 8, on both sides of longrope's 16


def _reference(part):
    """transformers' model with weights far from its initialisation, so that everything in it has a say."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = as_transformers_knows_it(part)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("norm.weight"):
                weight.add_(noise * 0.2)
                if name.endswith("q_norm.weight"):
                    weight.mul_(score_factor(part))
            elif weight.ndim == 1:
                weight.copy_(noise * 0.5)
            else:
                weight.copy_(noise * (1.5 / weight.shape[-1] ** 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.8 + 0.1 * int(name.split(".")[2]))
            if name.endswith("expert_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=random) * 0.1)
    return model.float().train()


def _loaded(part, folder):
    model = part.skeleton("cpu")
    tensors = part.unstack_experts(read_safetensors(folder).tensors)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_rows(part, {n: torch.from_numpy(t.load()) for n, t in tensors.items()}, name))
    return model


def _rows(part, tensors: dict[str, Tensor], name: str) -> Tensor:
    """A parameter's rows of the tensor that holds it, and perhaps others of its shape."""
    names = part.hf_names()
    members = [other for other in names if names[other] == names[name]]
    tensor = tensors[names[name]]
    rows = tensor.flatten(0, 1) if "experts" in name and tensor.ndim == 3 else tensor  # stacked
    return rows.chunk(len(members))[members.index(name)]


def _saved_gradients(part, model, folder) -> dict[str, Tensor]:
    """Gradients under the names of the files, which for experts are not those of transformers' parameters."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.grad)
    model.save_pretrained(folder)
    tensors = part.unstack_experts(read_safetensors(folder).tensors)
    return {name: torch.from_numpy(t.load()) for name, t in tensors.items()}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name, tmp_path) -> None:
    part = CASES[name]
    theirs = _reference(part)
    theirs.save_pretrained(tmp_path / "weights")
    ours = _loaded(part, tmp_path / "weights")
    random = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(0, part.vocab_size, (2, sum(LENGTHS)), generator=random)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    targets[bounds[1:].long() - 1] = -1

    alone = [theirs(text[None]).logits[0] for text in inputs.split(LENGTHS)]
    logits = torch.cat(alone)
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    loss.backward()
    total, count = NextToken().loss(ours, inputs, targets, bounds)
    total.backward()

    assert count == sum(LENGTHS) - len(LENGTHS)
    found = ours.logits(ours(inputs, bounds))
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    p, q = (x.detach().double().log_softmax(-1) for x in (logits, found))
    assert torch.kl_div(q, p, log_target=True).sum(-1).max() <= 1e-6  # nats, at each token
    torch.testing.assert_close(total, loss, atol=1e-4, rtol=1e-4)
    gradients = _saved_gradients(part, theirs, tmp_path / "gradients")
    for name, weight in ours.trainable().items():
        wanted = _rows(part, gradients, name)
        # its recurrences are in float32 always, and of float32's gradients settle's are as far off as settle's float64
        scale = float(wanted.abs().max()) if "linear_attn" in str(ours) else 1.0
        torch.testing.assert_close(weight.grad, wanted, atol=5e-4 * max(0.2, scale), rtol=1e-4, msg=None)
