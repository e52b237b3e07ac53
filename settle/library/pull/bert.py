"""Converts a sentence embedder of the BERT family from Hugging Face's layout to the GGUF file that llama.cpp runs.

Names of tensors and keys as llama.cpp's own converter writes them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from settle.base.errors import FormatError
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import read_safetensors

T = TypeVar("T")
Json = dict[str, Any]  # a parsed file
POOLING_FILE = "1_Pooling/config.json"  # where sentence-transformers keeps it
_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}  # GGUF's numbers
_NORMAL, _CONTROL = 1, 3
_WORD_START = "▁"  # GGUF marks where a word begins, WordPiece (with ##) where it continues
_SPECIAL = {"cls": "bos", "sep": "seperator", "pad": "padding", "unk": "unknown", "mask": "mask"}  # GGUF's spelling
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_OF_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def is_bert(folder: Path) -> bool:
    return _json(folder / "config.json").get("model_type") == "bert"


def bert_to_gguf(folder: Path, path: Path, name: str, license: str) -> Path:
    """Write the embedder of a folder as GGUF, its matrices in F16. The same folder gives the same bytes.

    Raises FormatError for weights or a tokenizer that are not BERT's.
    """
    config = _json(folder / "config.json")
    if config.get("hidden_act") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise FormatError(f"{name} is a BERT variant that llama.cpp does not run", "choose another embedder")
    part, tokenizer = _Bert(config, _pooling(folder)), _WordPiece(_json(folder / "tokenizer.json"))
    found = {tensor.removeprefix("bert."): lazy for tensor, lazy in read_safetensors(folder).tensors.items()}
    weights = {tensor: lazy.load() for tensor, lazy in found.items() if tensor in part.gguf_names()}
    return export_gguf(part, weights, tokenizer, path, "f16", {"name": name, "license": license})


@dataclass(frozen=True)
class _Bert:
    """What `export_gguf` asks of an architecture. pooling: GGUF's number for it."""

    gguf_architecture: ClassVar[str] = "bert"
    config: Json
    pooling: int

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def gguf_names(self) -> dict[str, str]:
        """Names of the tensors that vectors need: no pooler over the first token, no heads for other tasks."""
        stems = dict(_OUTSIDE)
        for layer in range(self.config["num_hidden_layers"]):
            stems |= {f"encoder.layer.{layer}.{hf}": f"blk.{layer}.{gguf}" for hf, gguf in _OF_LAYER.items()}
        tables = {hf for hf in stems if hf.endswith("_embeddings")}
        kinds = {hf: ("weight",) if hf in tables else ("weight", "bias") for hf in stems}
        return {f"{hf}.{kind}": f"{gguf}.{kind}" for hf, gguf in stems.items() for kind in kinds[hf]}

    def gguf_metadata(self) -> Json:
        config = self.config
        return {
            "bert.block_count": config["num_hidden_layers"],
            "bert.context_length": config["max_position_embeddings"],
            "bert.embedding_length": config["hidden_size"],
            "bert.feed_forward_length": config["intermediate_size"],
            "bert.attention.head_count": config["num_attention_heads"],
            "bert.attention.layer_norm_epsilon": config["layer_norm_eps"],
            "bert.attention.causal": False,
            "bert.pooling_type": self.pooling,
            "tokenizer.ggml.token_type_count": config.get("type_vocab_size", 1),
        }

    def gguf_constants(self) -> Json:
        return {}

    def to_gguf(self, name: str, values: T) -> T:
        return values


class _WordPiece:
    """What `export_gguf` asks of a tokenizer."""

    def __init__(self, raw: Json) -> None:
        """raw: tokenizer.json. Raises FormatError when it is of another kind."""
        model = raw.get("model") or {}
        self._normalizer = raw.get("normalizer") or {}
        kinds = (model.get("type"), model.get("continuing_subword_prefix"), self._normalizer.get("type"))
        if kinds != ("WordPiece", "##", "BertNormalizer"):
            raise FormatError("its tokenizer is not BERT's WordPiece", "choose another embedder")
        self._ids: dict[str, int] = model["vocab"]
        self._control = {token["content"] for token in raw.get("added_tokens") or [] if token.get("special")}
        self.vocab_size = len(self._ids)

    def gguf_metadata(self) -> Json:
        tokens = sorted(self._ids, key=self._ids.__getitem__)
        lowercase = bool(self._normalizer["lowercase"])
        strips = self._normalizer.get("strip_accents")
        keys: Json = {
            "model": "bert",
            "pre": "default",
            "tokens": [self._spelled(token) for token in tokens],
            "token_type": [_CONTROL if token in self._control else _NORMAL for token in tokens],
            "normalizer.lowercase": lowercase,
            "normalizer.strip_accents": lowercase if strips is None else strips,
        }
        named = {gguf: self._ids.get(f"[{own.upper()}]") for own, gguf in _SPECIAL.items()}
        keys |= {f"{gguf}_token_id": i for gguf, i in named.items() if i is not None}
        return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}

    def _spelled(self, token: str) -> str:
        if token in self._control:
            return token
        return token[2:] if token.startswith("##") else _WORD_START + token


def _pooling(folder: Path) -> int:
    """GGUF's number for the pooling of token vectors; the mean where the folder names none."""
    path = folder / POOLING_FILE
    modes = [number for mode, number in _POOLING.items() if path.exists() and _json(path).get(mode)]
    if len(modes) > 1:
        raise FormatError(f"{folder.name} pools in several ways at once", "choose another embedder")
    return modes[0] if modes else _POOLING["pooling_mode_mean_tokens"]


def _json(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise FormatError(f"{path.name} of {path.parent.name} cannot be read: {str(e)[:100]}", "get it again") from None
    return found if isinstance(found, dict) else {}
