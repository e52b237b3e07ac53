"""ModernBERT (arXiv:2412.13663): Ettin, gte-modernbert and others.

Norms before each part, rotary positions, a gated feed-forward, no biases; every third layer reads the whole text, the
others a window around each token. Legend: B texts, L tokens, W width, H heads, D width of a head.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settle.model.encoders import ACTIVATIONS, EncoderFamily, Head, Json, TextEncoder, require

_THETA = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
_OLD_THETA = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


class ModernBert(EncoderFamily):
    """ModernBERT."""

    model_type: ClassVar[str] = "modernbert"
    stem: ClassVar[str] = "ModernBert"
    prefix: ClassVar[str] = "model."

    def build(self, config: Json) -> TextEncoder:
        require(config, hidden_activation=("gelu", *ACTIVATIONS))
        return _Encoder(config)

    def head(self, config: Json, labels: int, of_tokens: bool) -> Head:
        require(config, classifier_pooling=("cls", "mean"), classifier_activation=("gelu", *ACTIVATIONS))
        names = {"dense.weight": "head.dense.weight", "norm.weight": "head.norm.weight"}
        bias = bool(config.get("classifier_bias", False))
        names |= {"dense.bias": "head.dense.bias"} if bias else {}
        names |= {"norm.bias": "head.norm.bias"} if config.get("norm_bias") else {}
        return Head(
            config["hidden_size"], labels, names | {f"out.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")},
            config.get("classifier_activation", "gelu"),
            None if of_tokens else config.get("classifier_pooling", "cls"),
            _norm(config), bias,
        )  # fmt: skip


class _Attention(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        width, bias = config["hidden_size"], config.get("attention_bias", False)
        self._heads = config["num_attention_heads"]
        self.Wqkv, self.Wo = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """x: (B, L, W); rotation: cosines and sines (L, D); mask: broadcast to (B, 1, L, L) → (B, L, W)."""
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(_rotated(q, *rotation), _rotated(k, *rotation), v, attn_mask=mask)
        out: Tensor = self.Wo(mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        width, inner, bias = config["hidden_size"], config["intermediate_size"], config.get("mlp_bias", False)
        self._activation = ACTIVATIONS[config.get("hidden_activation", "gelu")]
        self.Wi, self.Wo = nn.Linear(width, 2 * inner, bias), nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.Wi(x).chunk(2, -1)
        out: Tensor = self.Wo(self._activation(value) * gate)
        return out


class _Layer(nn.Module):
    def __init__(self, config: Json, is_first: bool) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if is_first else _norm(config)  # the embeddings are normalized already
        self.attn, self.mlp_norm, self.mlp = _Attention(config), _norm(config), _FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rotation, mask)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class _Embeddings(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.norm = _norm(config)


class _Encoder(TextEncoder):
    def __init__(self, config: Json) -> None:
        super().__init__(config["hidden_size"])
        number = config["num_hidden_layers"]
        self._kinds = layer_kinds(config)
        self._theta = {kind: rope_theta(config, kind) for kind in _THETA}
        self._side = config.get("local_attention", 128) // 2  # tokens that a local layer sees on each side
        self._head_width = config["hidden_size"] // config["num_attention_heads"]
        self.embeddings = _Embeddings(config)
        self.layers = nn.ModuleList(_Layer(config, layer == 0) for layer in range(number))
        self.final_norm = _norm(config)

    def states(self, ids: Tensor, mask: Tensor, layers: int | None = None, segments: Tensor | None = None) -> Tensor:
        """Compute as `TextEncoder.states`; the last norm is applied behind all layers only."""
        x = self.embeddings.norm(self.embeddings.tok_embeddings(ids))
        length = ids.shape[1]
        place = torch.arange(length, device=ids.device)
        whole = None if bool(mask.all()) else mask[:, None, None]
        near = (place[:, None] - place).abs() <= self._side
        local = whole if bool(near.all()) else near[None, None] if whole is None else near & whole
        masks = {"full_attention": whole, "sliding_attention": local}
        rotations = {kind: _rotation(place, theta, self._head_width) for kind, theta in self._theta.items()}
        for layer, kind in list(zip(self.layers, self._kinds, strict=True))[:layers]:
            x = layer(x, rotations[kind], masks[kind])
        out: Tensor = self.final_norm(x) if layers is None else x
        return out


def layer_kinds(config: Json) -> list[str]:
    """Return what each layer reads: "full_attention" or "sliding_attention"."""
    every = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    return kinds or [list(_THETA)[bool(layer % every)] for layer in range(config["num_hidden_layers"])]


def rope_theta(config: Json, kind: str) -> float:
    """Return the base of the rotations of one kind of layers. Raises FormatError for scaled ones."""
    rope = (config.get("rope_parameters") or {}).get(kind) or {}
    require(rope, rope_type=("default",))
    return float(rope.get("rope_theta") or config.get(_OLD_THETA[kind]) or _THETA[kind])


def _norm(config: Json) -> nn.LayerNorm:
    return nn.LayerNorm(config["hidden_size"], config.get("norm_eps", 1e-5), bias=config.get("norm_bias", False))


def _rotation(place: Tensor, theta: float, width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (L, width) of places (L,)."""
    frequency = theta ** (-torch.arange(0, width, 2, device=place.device) / width)
    angle = (place[:, None] * frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate x (B, H, L, D)."""
    first, second = x.chunk(2, -1)
    return x * cosine.to(x.dtype) + torch.cat([-second, first], -1) * sine.to(x.dtype)
