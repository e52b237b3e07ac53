"""Attention with a sink for each head (gpt-oss): as transformers has it, token by token, and in its document."""

import numpy as np
import pytest
import torch

from settle.base.errors import ProofError
from settle.data.batches import Batch
from settle.model.kv_cache import Growing
from settle.model.layers.attention import attention
from settle.model.layers.packed_sequences import Packing, RotationTable, Scoring
from settle.model.layers.rope import no_rope
from settle.train.proof import definition
from settle.train.proof.definition import require_attention, require_causal
from tests.model.test_layers import decoder

LENGTHS = [9, 30, 1, 4]
ASKED = {"sinks": True, "window": 7}


def test_equals_transformers() -> None:
    """Outputs and gradients, of sinks as large as scores and far from them."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssConfig, eager_attention_forward

    config = GptOssConfig(hidden_size=32, head_dim=8, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1)
    module = GptOssAttention(config, 0).double()
    table = RotationTable(8, 4, 2, no_rope(8), torch.device("cpu"), torch.float64)
    random = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), 64, generator=random, dtype=torch.float64).mul_(2).requires_grad_()
    sinks = torch.tensor([0.5, -9.0, 3.0, 12.0], dtype=torch.float64, requires_grad=True)
    module.sinks.data = sinks.data
    theirs = []
    for rows in qkv.split(LENGTHS):
        q, k, v = (x.transpose(0, 1)[None] for x in rows.view(-1, 8, 8).split([4, 2, 2], 1))
        place = torch.arange(len(rows))
        back = place[:, None] - place[None]
        mask = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        mask.masked_fill_((back < 0) | (back >= 7), -torch.inf)
        theirs.append(eager_attention_forward(module, q, k, v, mask, 8**-0.5)[0][0].flatten(1))
    out = torch.randn(sum(LENGTHS), 32, generator=random, dtype=torch.float64)
    wanted = torch.cat(theirs)
    packing = Packing(torch.tensor([0, *LENGTHS]).cumsum(0).int())
    found = attention(qkv, packing, table, Scoring(window=7, sinks=sinks))
    torch.testing.assert_close(found, wanted)
    gradients = torch.autograd.grad(found, [qkv, sinks], out)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, [qkv, module.sinks], out))


def test_token_by_token_equals_the_whole() -> None:
    model = decoder(ASKED)
    texts = torch.randint(0, 32, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0)).split(LENGTHS)
    further = torch.arange(5)
    with torch.no_grad():
        growing = Growing(torch.tensor([0, *LENGTHS]).cumsum(0).int(), len(further))
        model(torch.cat(texts), growing)
        for token in further:
            growing.read()
            last = model(token.expand(len(texts)), growing)
        for text, row in zip(texts, last, strict=True):
            whole = torch.cat([text, further])
            torch.testing.assert_close(row, model(whole, torch.tensor([0, len(whole)]).int())[-1])


def test_it_is_its_definition_and_stays_in_its_document(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(ASKED)
    ids = np.random.default_rng(0).integers(0, 32, sum(LENGTHS))
    bounds = np.cumsum([0, *LENGTHS]).astype(np.int32)
    batch = Batch(ids, np.roll(ids, -1), bounds, np.concatenate([np.arange(n) for n in LENGTHS]))
    assert require_attention(model, batch).startswith("2 layers")
    require_causal(model, batch, [])
    attend = definition.attention_over

    def without(qkv, packing, table, scoring, bias):
        return attend(qkv, packing, table, scoring._replace(sinks=None), bias)

    monkeypatch.setattr(definition, "attention_over", without)
    with pytest.raises(ProofError, match=r"layer 0: its attention is .* off its definition"):
        require_attention(model, batch)
