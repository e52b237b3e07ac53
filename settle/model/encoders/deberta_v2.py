"""DeBERTa v2 and v3 (arXiv:2006.03654, arXiv:2111.09543): content and relative positions attend to each other.

Legend: B texts, L tokens, W width, H heads, D width of a head, S positions of each sign that are told apart.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from settle.model.encoders import ACTIVATIONS, EncoderFamily, Head, Json, TextEncoder, require


class DebertaV2(EncoderFamily):
    """DeBERTa-v2 and DeBERTa-v3."""

    model_type: ClassVar[str] = "deberta-v2"
    stem: ClassVar[str] = "DebertaV2"
    prefix: ClassVar[str] = "deberta."

    def build(self, config: Json) -> TextEncoder:
        require(config, hidden_act=("gelu", *ACTIVATIONS), conv_act=("tanh", *ACTIVATIONS))
        return _Encoder(config)

    def head(self, config: Json, labels: int, of_tokens: bool) -> Head:
        require(config, pooler_hidden_act=("gelu", *ACTIVATIONS))
        names = {f"out.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")}
        if of_tokens:
            return Head(config["hidden_size"], labels, names, None, None)
        names |= {f"dense.{kind}": f"pooler.dense.{kind}" for kind in ("weight", "bias")}
        return Head(config["hidden_size"], labels, names, config.get("pooler_hidden_act", "gelu"))


def _attention_kinds(config: Json) -> list[str]:
    kinds = config.get("pos_att_type") or []
    return [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else list(kinds)


class _SelfAttention(nn.Module):
    """Attention whose scores also have content to position (c2p) and position to content (p2c)."""

    def __init__(self, config: Json) -> None:
        super().__init__()
        width = config["hidden_size"]
        self._heads, self._kinds = config["num_attention_heads"], _attention_kinds(config)
        self._shares = bool(config.get("share_att_key"))
        self.query_proj, self.key_proj, self.value_proj = (nn.Linear(width, width) for _ in range(3))
        if config.get("relative_attention") and not self._shares:
            if "c2p" in self._kinds:
                self.pos_key_proj = nn.Linear(width, width)
            if "p2c" in self._kinds:
                self.pos_query_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, relative: Tensor | None, table: Tensor | None) -> Tensor:
        """x: (B, L, W); mask: (B, 1, L, L); relative: (L, L) distances; table: their vectors, (2 S, W) → (B, L, W)."""
        q, k, v = (self._by_head(linear(x)) for linear in (self.query_proj, self.key_proj, self.value_proj))
        scores = q @ k.mT
        if relative is not None and table is not None:
            shape, span = (*q.shape[:2], *relative.shape), len(table) // 2
            if "c2p" in self._kinds:
                keys = self._by_head((self.key_proj if self._shares else self.pos_key_proj)(table))
                scores = scores + (q @ keys.mT).gather(-1, (span + relative).clamp(0, 2 * span - 1).expand(shape))
            if "p2c" in self._kinds:
                queries = self._by_head((self.query_proj if self._shares else self.pos_query_proj)(table))
                back = (span - relative).clamp(0, 2 * span - 1).expand(shape)
                scores = scores + (k @ queries.mT).gather(-1, back).mT
        scores = scores / math.sqrt(q.shape[-1] * (1 + len({"c2p", "p2c"}.intersection(self._kinds))))
        share = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        mixed: Tensor = (share @ v).transpose(1, 2).flatten(2)
        return mixed

    def _by_head(self, x: Tensor) -> Tensor:
        by_head: Tensor = x.unflatten(-1, (self._heads, -1)).transpose(-3, -2)
        return by_head


class _Added(nn.Module):
    """A linear whose output is added to what came before, and normalized."""

    def __init__(self, inputs: int, config: Json) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, config["hidden_size"]), _norm(config)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dense(x) + before)
        return out


class _Attention(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        self.self, self.output = _SelfAttention(config), _Added(config["hidden_size"], config)


class _Intermediate(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        self.dense = nn.Linear(config["hidden_size"], config["intermediate_size"])


class _Layer(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
        self.attention, self.intermediate = _Attention(config), _Intermediate(config)
        self.output = _Added(config["intermediate_size"], config)

    def forward(self, x: Tensor, mask: Tensor, relative: Tensor | None, table: Tensor | None) -> Tensor:
        x = self.attention.output(self.attention.self(x, mask, relative, table), x)
        out: Tensor = self.output(self._activation(self.intermediate.dense(x)), x)
        return out


class _Convolution(nn.Module):
    """Beside the first layer of the large v2 models: each token with its neighbours."""

    def __init__(self, config: Json) -> None:
        super().__init__()
        width, size = config["hidden_size"], config["conv_kernel_size"]
        self._activation = ACTIVATIONS[config.get("conv_act", "tanh")]
        self.conv = nn.Conv1d(width, width, size, padding=(size - 1) // 2, groups=config.get("conv_groups", 1))
        self.LayerNorm = _norm(config)

    def forward(self, x: Tensor, after: Tensor, mask: Tensor) -> Tensor:
        """x: before the first layer, after: behind it, both (B, L, W); mask: (B, L) → (B, L, W)."""
        beside = self.conv(x.mT).mT * mask[..., None]
        out: Tensor = self.LayerNorm(after + self._activation(beside)) * mask[..., None]
        return out


class _Embeddings(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        width = int(config.get("embedding_size") or config["hidden_size"])
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        if config.get("position_biased_input", True):
            self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        if config.get("type_vocab_size", 0):
            self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        if width != config["hidden_size"]:
            self.embed_proj = nn.Linear(width, config["hidden_size"], bias=False)
        self.LayerNorm = _norm(config)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None) -> Tensor:
        x = self.word_embeddings(ids)
        if hasattr(self, "position_embeddings"):
            x = x + self.position_embeddings.weight[: ids.shape[1]]
        if hasattr(self, "token_type_embeddings"):
            x = x + self.token_type_embeddings(torch.zeros_like(ids) if segments is None else segments)
        if hasattr(self, "embed_proj"):
            x = self.embed_proj(x)
        out: Tensor = self.LayerNorm(x) * mask[..., None]
        return out


class _Layers(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))
        self.buckets = int(config.get("position_buckets", -1))
        most = int(config.get("max_relative_positions", -1))
        self.most = most if most >= 1 else config["max_position_embeddings"]
        if config.get("relative_attention"):
            span = self.buckets if self.buckets > 0 else self.most
            self.rel_embeddings = nn.Embedding(2 * span, config["hidden_size"])
        if "layer_norm" in str(config.get("norm_rel_ebd", "none")).lower():
            self.LayerNorm = _norm(config)
        if config.get("conv_kernel_size", 0) > 0:
            self.conv = _Convolution(config)

    def relative(self, length: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Return how far apart each pair of places counts as, (L, L), and the table of positions (2 S, W)."""
        if not hasattr(self, "rel_embeddings"):
            return None, None
        place = torch.arange(length, device=device)
        apart = place[:, None] - place
        if self.buckets > 0 and self.most > 0:
            apart = _bucketed(apart, self.buckets // 2, self.most)
        table = self.rel_embeddings.weight
        table = self.LayerNorm(table) if hasattr(self, "LayerNorm") else table
        return apart, table


class _Encoder(TextEncoder):
    def __init__(self, config: Json) -> None:
        super().__init__(config["hidden_size"])
        self.embeddings, self.encoder = _Embeddings(config), _Layers(config)

    def states(self, ids: Tensor, mask: Tensor, layers: int | None = None, segments: Tensor | None = None) -> Tensor:
        """Compute as `TextEncoder.states`."""
        first = x = self.embeddings(ids, mask, segments)
        seen = mask[:, None, None] & mask[:, None, :, None]
        relative, table = self.encoder.relative(ids.shape[1], ids.device)
        for number, layer in enumerate(self.encoder.layer[:layers]):
            x = layer(x, seen, relative, table)
            if number == 0 and hasattr(self.encoder, "conv"):
                x = self.encoder.conv(first, x, mask)
        out: Tensor = x
        return out


def _norm(config: Json) -> nn.LayerNorm:
    return nn.LayerNorm(config["hidden_size"], config.get("layer_norm_eps", 1e-7))


def _bucketed(apart: Tensor, middle: int, most: int) -> Tensor:
    """Keep distances up to `middle`; put longer ones, up to `most`, into as many buckets of growing width."""
    far = apart.abs().clamp(min=middle)
    step = torch.log(far / middle) / torch.log(torch.tensor((most - 1) / middle)) * (middle - 1)
    return torch.where(apart.abs() <= middle, apart, ((step.ceil() + middle) * apart.sign()).long())
