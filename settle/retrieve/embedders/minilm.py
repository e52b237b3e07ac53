"""all-MiniLM-L6-v2, a sentence embedder of 22 million parameters: small enough for a laptop, and it needs no network.

Legend: T tokens of all texts side by side, B texts, H heads, D width of a head, W width.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from settle.base.run import home
from settle.retrieve.embedders import Embedder, Vectorizer

_MOST = 254  # the model was made for 256 tokens with those that open and close a text
_AT_ONCE = 1 << 13  # tokens, padding included


class Minilm(Embedder):
    """Mean of the last layer's tokens, length 1."""

    def open(self) -> Vectorizer:
        return _Encoder(home() / "models" / "minilm")


class _Encoder(Vectorizer):
    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MOST + 2)
        config = json.loads((folder / "config.json").read_text())
        self.width, self.most = config["hidden_size"], _MOST
        self._heads, self._layers = config["num_attention_heads"], config["num_hidden_layers"]
        self._epsilon = config["layer_norm_eps"]
        self._w = load_file(folder / "model.safetensors")
        with (folder / "model.safetensors").open("rb") as f:
            self.identity = hashlib.file_digest(f, "sha256").hexdigest()

    def count(self, texts: Sequence[str]) -> list[int]:
        self._tokenizer.no_truncation()
        return [len(e.ids) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        self._tokenizer.enable_truncation(_MOST + 2)
        ids = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]
        out = np.empty((len(texts), self.width), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= _AT_ONCE:
                end += 1
            some = order[start:end]
            out[some] = self._forward([ids[i] for i in some])
            start = end
        return out

    def query(self, text: str) -> np.ndarray:
        vector: np.ndarray = self.documents([text])[0]
        return vector

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> np.ndarray:
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        seen = torch.arange(longest) < lengths[:, None]
        w = self._w
        x = w["embeddings.word_embeddings.weight"][padded] + w["embeddings.position_embeddings.weight"][:longest]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(self._layers):
            at = f"encoder.layer.{i}."
            q, k, v = (
                self._linear(x, f"{at}attention.self.{n}").unflatten(-1, (self._heads, -1)).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
            x = self._norm(
                x + self._linear(mixed.transpose(1, 2).flatten(2), at + "attention.output.dense"),
                at + "attention.output.LayerNorm",
            )
            wide = F.gelu(self._linear(x, at + "intermediate.dense"))
            x = self._norm(x + self._linear(wide, at + "output.dense"), at + "output.LayerNorm")
        mean = (x * seen[..., None]).sum(1) / lengths[:, None]
        return F.normalize(mean, dim=-1).numpy()

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._w[name + ".weight"], self._w[name + ".bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self._w[name + ".weight"], self._w[name + ".bias"], self._epsilon)
