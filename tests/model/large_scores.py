"""Weights whose attention scores are as large as those of Qwen2.5: 1,450, with key biases up to 211."""

import math

import torch

from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from tests.model.architectures.cases import random_model

SCORE, KEY_BIAS = 1450.0, 211.0


def with_large_scores(part: Architecture) -> Decoder:
    """A model of `part` with large scores in its even layers and a third of them in the others.

    They come from the biases of queries and keys on the pair that turns most slowly, as in Qwen2.5; of the factors of
    the head norms where a family has these; else of the rows of that pair.
    """
    model = random_model(part)
    for number, layer in enumerate(model.layers):
        _enlarge(layer, SCORE if number % 2 == 0 else SCORE / 3)
    return model


@torch.no_grad()
def _enlarge(layer, score: float) -> None:
    attention, o = layer.self_attn, layer.options
    scale = o.head_dim**-0.5 if o.query_scale is None else o.query_scale
    slow = (o.rope.rotary_dim or o.head_dim) // 2 - 1
    share = score / SCORE
    if attention.q_norm is not None:
        for norm in (attention.q_norm, attention.k_norm):
            # all heads alike in one pair, so that most of a score is the same for every key
            norm.weight[slow] = math.sqrt(score / scale) - o.norm_offset
    elif o.qkv_bias and not o.fused:
        keys = attention.k_proj.bias.view(o.kv_heads, o.head_dim)
        queries = attention.q_proj.bias.view(o.heads, o.head_dim)
        keys[:, slow] = KEY_BIAS * share
        queries[:, slow] = score / scale / (KEY_BIAS * share)
    else:
        first, last = o.heads * o.head_dim, (o.heads + o.kv_heads) * o.head_dim
        matrix = attention.qkv_proj.weight[:last] if o.fused else None
        rows = [matrix[:first], matrix[first:]] if o.fused else [attention.q_proj.weight, attention.k_proj.weight]
        for part in rows:
            part.view(-1, o.head_dim, o.width)[:, slow] *= math.sqrt(score / scale / 4)
