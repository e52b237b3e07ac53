"""Converts a sentence embedder from Hugging Face's layout to the GGUF file that llama.cpp runs.

BERT, XLM-RoBERTa and ModernBERT; a Dense module behind the pooling has no place there.

Names of tensors and keys as llama.cpp's own converter writes them.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from settle.base.errors import FormatError, malformed_is_format_error
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats import GgufTokenizer
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import read_safetensors
from settle.library.pull.hub import POOLING_FILE
from settle.model.encoder_folder import EncoderFolder
from settle.model.encoders.bert import OF_LAYER, OUTSIDE
from settle.model.encoders.modernbert import layer_kinds, rope_theta

T = TypeVar("T")
Json = dict[str, Any]  # a parsed file
_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}  # GGUF's numbers
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_WORD_START = "▁"  # GGUF marks where a word begins, WordPiece (with ##) where it continues
_SPECIAL = {"cls": "bos", "sep": "seperator", "pad": "padding", "unk": "unknown", "mask": "mask"}  # GGUF's spelling
_MODERN_LAYER = {
    "attn.Wqkv": "attn_qkv", "attn.Wo": "attn_output", "mlp.Wi": "ffn_up", "mlp.Wo": "ffn_down",
    "attn_norm": "attn_norm", "mlp_norm": "ffn_norm",
}  # fmt: skip
_POSITIONS = "embeddings.position_embeddings.weight"


def has_gguf(folder: EncoderFolder) -> bool:
    """Return whether llama.cpp runs an embedder."""
    return folder.use == "embed" and not folder.dense and folder.config["model_type"] in _LAYOUTS


def encoder_to_gguf(folder: Path, path: Path, name: str, license: str) -> Path:
    """Write the embedder of a folder as GGUF, its matrices in F16. The same folder gives the same bytes.

    Raises FormatError for weights or a tokenizer that llama.cpp does not run.
    """
    config = _json(folder / "config.json")
    with malformed_is_format_error(folder.name):
        part = _LAYOUTS[config["model_type"]](config, _pooling(folder))
        tokenizer = _tokenizer(folder)
    found = {n.removeprefix(part.prefix): lazy for n, lazy in read_safetensors(folder).tensors.items()}
    weights = {tensor: lazy.load() for tensor, lazy in found.items() if tensor in part.gguf_names()}
    if _POSITIONS in weights:
        weights[_POSITIONS] = weights[_POSITIONS][part.position_offset :]
    return export_gguf(part, weights, tokenizer, path, "f16", {"name": name, "license": license})


@dataclass(frozen=True)
class _Bert:
    """What `export_gguf` asks of an architecture. pooling: GGUF's number for it."""

    gguf_family: ClassVar[str] = "bert"
    prefix: ClassVar[str] = "bert."
    position_offset: ClassVar[int] = 0
    config: Json
    pooling: int

    def __post_init__(self) -> None:
        config = self.config
        if config.get("hidden_act") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
            raise FormatError("it is a BERT variant that llama.cpp does not run", "choose another embedder")

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def gguf_names(self) -> dict[str, str]:
        """Names of the tensors that vectors need: no pooler over the first token, no heads for other tasks."""
        stems = dict(OUTSIDE)
        for layer in range(self.config["num_hidden_layers"]):
            stems |= {f"encoder.layer.{layer}.{hf}": f"blk.{layer}.{gguf}" for hf, gguf in OF_LAYER.items()}
        tables = {hf for hf in stems if hf.endswith("_embeddings")}
        kinds = {hf: ("weight",) if hf in tables else ("weight", "bias") for hf in stems}
        return {f"{hf}.{kind}": f"{gguf}.{kind}" for hf, gguf in stems.items() for kind in kinds[hf]}

    def gguf_metadata(self) -> Json:
        config = self.config
        return {
            "bert.block_count": config["num_hidden_layers"],
            "bert.context_length": config["max_position_embeddings"] - self.position_offset,
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

    def gguf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def to_gguf(self, name: str, values: T) -> T:
        return values


class _XlmRoberta(_Bert):
    prefix: ClassVar[str] = "roberta."

    @property
    def position_offset(self) -> int:  # type: ignore[override]
        return int(self.config.get("pad_token_id", 1)) + 1


class _ModernBert(_Bert):
    gguf_family: ClassVar[str] = "modern-bert"
    prefix: ClassVar[str] = "model."

    def __post_init__(self) -> None:
        config = self.config
        biases = [key for key in ("norm_bias", "attention_bias", "mlp_bias") if config.get(key)]
        every = config.get("global_attn_every_n_layers", 3)
        usual = layer_kinds({"num_hidden_layers": config["num_hidden_layers"], "global_attn_every_n_layers": every})
        if biases or config.get("hidden_activation", "gelu") != "gelu" or layer_kinds(config) != usual:
            raise FormatError("it is a ModernBERT variant that llama.cpp does not run", "choose another embedder")

    def gguf_names(self) -> dict[str, str]:
        names = {"embeddings.tok_embeddings": "token_embd", "embeddings.norm": "token_embd_norm",
                 "final_norm": "output_norm"}  # fmt: skip
        for layer in range(self.config["num_hidden_layers"]):
            names |= {f"layers.{layer}.{hf}": f"blk.{layer}.{gguf}" for hf, gguf in _MODERN_LAYER.items()}
        del names["layers.0.attn_norm"]
        return {f"{hf}.weight": f"{gguf}.weight" for hf, gguf in names.items()}

    def gguf_metadata(self) -> Json:
        config, at = self.config, "modern-bert"
        return {
            f"{at}.block_count": config["num_hidden_layers"],
            f"{at}.context_length": config["max_position_embeddings"],
            f"{at}.embedding_length": config["hidden_size"],
            f"{at}.feed_forward_length": config["intermediate_size"],
            f"{at}.attention.head_count": config["num_attention_heads"],
            f"{at}.attention.layer_norm_epsilon": config.get("norm_eps", 1e-5),
            f"{at}.attention.causal": False,
            f"{at}.attention.sliding_window": config.get("local_attention", 128),
            f"{at}.attention.sliding_window_pattern": config.get("global_attn_every_n_layers", 3),
            f"{at}.rope.freq_base": rope_theta(config, "full_attention"),
            f"{at}.rope.freq_base_swa": rope_theta(config, "sliding_attention"),
            f"{at}.rope.scaling.type": "none",
            f"{at}.vocab_size": config["vocab_size"],
            f"{at}.pooling_type": self.pooling,
        }


_LAYOUTS: dict[str, type[_Bert]] = {"bert": _Bert, "xlm-roberta": _XlmRoberta, "modernbert": _ModernBert}


def _tokenizer(folder: Path) -> GgufTokenizer:
    """Return the tokenizer of a folder as GGUF's keys. Raises FormatError for one that llama.cpp does not run."""
    raw = _json(folder / "tokenizer.json")
    if (raw.get("model") or {}).get("type") == "Unigram":
        return _Unigram(raw)
    if (raw.get("model") or {}).get("type") == "BPE":
        return _Bpe(folder, raw)
    return _WordPiece(raw)


class _Unigram:
    """SentencePiece's unigram model, as XLM-RoBERTa has it: <s> text </s>."""

    def __init__(self, raw: Json) -> None:
        model, special = raw["model"], {t["content"] for t in raw.get("added_tokens") or [] if t.get("special")}
        tokens = [token for token, _ in model["vocab"]]
        steps = [step for step in _opened(raw.get("normalizer")) if step.get("precompiled_charsmap")]
        kinds = [_UNKNOWN if i == model["unk_id"] else _CONTROL if t in special else _NORMAL
                 for i, t in enumerate(tokens)]  # fmt: skip
        self.vocab_size = len(tokens)
        self._keys: Json = {
            "model": "t5", "pre": "default", "tokens": tokens, "scores": [float(score) for _, score in model["vocab"]],
            "token_type": kinds, "add_space_prefix": True, "remove_extra_whitespaces": True,
            "add_bos_token": True, "add_eos_token": True, "unknown_token_id": model["unk_id"],
        }  # fmt: skip
        named = {"bos": "<s>", "eos": "</s>", "seperator": "</s>", "padding": "<pad>", "cls": "<s>", "mask": "<mask>"}
        self._keys |= {f"{key}_token_id": tokens.index(token) for key, token in named.items() if token in tokens}
        if steps:
            charsmap = np.frombuffer(base64.b64decode(steps[0]["precompiled_charsmap"]), np.uint8)
            self._keys["precompiled_charsmap"] = charsmap

    def gguf_metadata(self) -> Json:
        return {f"tokenizer.ggml.{key}": value for key, value in self._keys.items()}


def _opened(step: Json | None) -> list[Json]:
    return [] if step is None else list(step.get("normalizers") or [step])


class _Bpe:
    """Byte-level BPE, as ModernBERT has it: [CLS] text [SEP]."""

    def __init__(self, folder: Path, raw: Json) -> None:
        tokenizer = PretrainedTokenizer.from_folder(folder)
        ids = {token["content"]: token["id"] for token in raw.get("added_tokens") or []}
        self.vocab_size, first, last = tokenizer.vocab_size, ids.get("[CLS]"), ids.get("[SEP]")
        if first is None or last is None:
            raise FormatError("its tokenizer has no [CLS] and [SEP]", "choose another embedder")
        named = {"bos": first, "eos": last, "cls": first, "seperator": last}
        around: Json = {f"add_{key}_token": True for key in ("bos", "eos", "sep")}
        around |= {f"{key}_token_id": number for key, number in named.items()}
        self._keys = {**tokenizer.metadata, **{f"tokenizer.ggml.{key}": value for key, value in around.items()}}

    def gguf_metadata(self) -> Json:
        return self._keys


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
