"""Folders of encoders in Hugging Face's layout: sentence-transformers' embedders, and models with a head for labels.

Layout of the former: https://sbert.net/docs/sentence_transformer/usage/custom_models.html. Legend: B pairs, L tokens.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from settle.base.errors import FormatError, malformed_is_format_error
from settle.base.files import write_json
from settle.formats import LazyTensor, folder_to_write
from settle.formats.safetensors import SINGLE, read_safetensors, write_safetensors
from settle.model.encoder import padded
from settle.model.encoder_config import Use, has_token_labels, labels_of, use_of
from settle.model.encoders import (
    POOLINGS,
    Dense,
    EncoderFamily,
    Head,
    Json,
    PairScorer,
    TextEncoder,
    family_of,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODULES, PROMPTS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_POOLED = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
_TORCH = {"Tanh": "tanh", "GELU": "gelu", "ReLU": "relu", "SiLU": "silu", "Identity": "identity"}  # of activations
_NAMESPACE = "sentence_transformers.models."  # under which every version finds its modules
_POSITIVE = re.compile(r"entail|support|ground|consisten|faithful|relevant|answers|^yes$|^true$", re.I)
_NEGATIVE = re.compile(r"not|un|in(?=consist)|ir(?=relev)|hallucinat", re.I)


@dataclass(frozen=True)
class DenseModule:
    """A Dense module of sentence-transformers: its folder and its sizes."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class EncoderFolder:
    """An encoder's folder, not yet loaded.

    pooling, dense, normalizes: how a text's vector is made. prompts: prefixes of texts by name. most: tokens of the
    longest text, those around it included.
    """

    path: Path
    config: Json
    family: EncoderFamily
    most: int
    pooling: str = "mean"
    dense: tuple[DenseModule, ...] = ()
    normalizes: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, path: Path) -> "EncoderFolder | None":
        """Open a folder; None where its config.json is of another kind of model. Raises FormatError."""
        with malformed_is_format_error(path.name):
            config = _read(path / "config.json")
            family = family_of(config)
            return None if family is None else _opened(path, config, family)

    @classmethod
    def open(cls, path: Path) -> "EncoderFolder":
        """Open a folder. Raises FormatError also where its config.json is of another kind of model."""
        found = cls.find(path)
        if found is None:
            known = ", ".join(family.model_type for family in EncoderFamily.parts().values())
            raise FormatError(f"{path.name} is no encoder that is known here", f"known model_type: {known}")
        return found

    @property
    def use(self) -> Use:
        return use_of(self.config)

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_of(self.config)

    @property
    def query_prefix(self) -> str:
        return self.prompts.get("query", "")

    @property
    def document_prefix(self) -> str:
        return self.prompts.get("document") or self.prompts.get("passage") or ""

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """It puts the tokens around a text that the model expects, and neither cuts nor pads."""
        from tokenizers import Tokenizer

        raw = _read(self.path / "tokenizer.json")
        if not raw.get("model"):
            raise FormatError(f"tokenizer.json of {self.path.name} holds no tokenizer", "get the folder again")
        tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(raw))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encoder(self) -> TextEncoder:
        """Load the encoder with its pooling and Dense modules, in fp32. Raises FormatError when a tensor is missing."""
        model = self._bare()
        model.pooling = self.pooling
        for module in self.dense:
            dense = Dense(module.inputs, module.outputs, module.bias, module.activation)
            _load(dense, {name: name for name in dense.state_dict()}, read_safetensors(module.folder).tensors)
            model.dense.append(dense)
        return model

    def classifier(self, labels: int = 1) -> "Classifier":
        """Load the model with its head; where it has none, a head of `labels` labels is new."""
        of_tokens = has_token_labels(self.config)
        is_new = self.use == "embed"
        head = self.family.head(self.config, labels if is_new else len(self.labels), of_tokens)
        if is_new:
            torch.nn.init.normal_(head.out.weight, std=self.config["hidden_size"] ** -0.5)
            torch.nn.init.zeros_(head.out.bias)
        else:
            _load(head, head.names, self.tensors)
        return Classifier(self._bare(), head, self.labels if not is_new else ("LABEL_0",) * labels, self.family)

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        return read_safetensors(self.path).tensors

    def _bare(self) -> TextEncoder:
        model, prefix = self.family.build(self.config), self.family.prefix
        stripped = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items()}
        _load(model, self.family.names(model), stripped)
        return model


class Classifier(PairScorer):
    """An encoder with a head that reads two texts at once, and says how likely the second goes with the first.

    A reranker reads a question and a passage, a groundedness model a passage and a claim.
    """

    def __init__(self, encoder: TextEncoder, head: Head, labels: Sequence[str], family: EncoderFamily) -> None:
        super().__init__()
        self.encoder, self.head, self.labels, self.width = encoder, head, tuple(labels), encoder.width
        self.family = family

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def logits(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Compute ids, mask, segments (B, L) → (B, K), or (B, L, K) where tokens have labels."""
        logits: Tensor = self.head(self.encoder.states(ids, mask, segments=segments), mask)
        return logits

    def pairs(self, firsts: Sequence[Tensor], seconds: Sequence[Tensor]) -> Tensor:
        """Ids of B texts and of B others, with the tokens around them → logits (B,), above 0 where they go together.

        Where tokens have labels it is that of the least supported token of the second text.
        """
        ids, mask = padded([self._joined(a, b) for a, b in zip(firsts, seconds, strict=True)], self.device)
        starts = torch.tensor([len(a) + self.family.closings - 1 for a in firsts], device=self.device)
        second = (torch.arange(ids.shape[1], device=self.device) >= starts[:, None]) & mask
        logits = self._positive(self.logits(ids, mask, second.long()))
        if self.head.pooling is not None:
            return logits
        ends = mask.sum(1, keepdim=True) - 1  # the closing token is no part of the text
        inside = second & (torch.arange(ids.shape[1], device=self.device) < ends)
        return logits.masked_fill(~inside, torch.inf).amin(1)

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = torch.as_tensor(first), torch.as_tensor(second)
        return torch.cat([first, first[-1:].repeat(self.family.closings - 1), second[1:]])

    def _positive(self, logits: Tensor) -> Tensor:
        """Return the log odds of the label that speaks for the pair, from logits (…, K) → (…)."""
        if logits.shape[-1] == 1:
            return logits[..., 0]
        own = positive_label(self.labels, self.head.pooling is None)
        others = [label for label in range(logits.shape[-1]) if label != own]
        return logits[..., own] - logits[..., others].logsumexp(-1)


def positive_label(labels: Sequence[str], of_tokens: bool) -> int:
    """Return which label speaks for a pair: by its name; unnamed ones are 1 for texts, and 0 for tokens.

    Models that mark tokens mark those without support.
    """
    named = [i for i, label in enumerate(labels) if _POSITIVE.search(label) and not _NEGATIVE.match(label)]
    return named[0] if named else 0 if of_tokens else min(1, len(labels) - 1)


def write_encoder(
    path: Path, encoder: TextEncoder, source: EncoderFolder, dtype: str = "f32", classifier: Classifier | None = None
) -> Path:
    """Write a folder that sentence-transformers and transformers load.

    source: the folder that the model was made of, whose configuration and tokenizer it keeps. classifier: the model
    that the encoder is of, where it has a head.
    """
    prefix = source.family.prefix if classifier else ""
    names = {own: prefix + name for own, name in source.family.names(encoder).items()}
    own = dict(encoder.named_parameters())
    weights = {name: own[ours].detach() for ours, name in names.items()}
    if not classifier:  # transformers builds a pooler that no vector needs, and misses its weights
        weights |= {n: torch.from_numpy(t.load()) for n, t in source.tensors.items() if n.startswith("pooler.")}
    config = dict(source.config) | {"dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]}
    if classifier:
        head = classifier.head
        weights |= {name: head.get_parameter(ours).detach() for ours, name in head.names.items()}
        kind = "TokenClassification" if head.pooling is None else "SequenceClassification"
        named = {str(i): label for i, label in enumerate(classifier.labels)}
        if len(set(named.values())) < len(named):
            named = {key: f"LABEL_{key}" for key in named}
        config |= {"architectures": [f"{source.family.stem}For{kind}"], "id2label": named,
                   "label2id": {label: int(key) for key, label in named.items()}}  # fmt: skip
    else:
        config["architectures"] = [f"{source.family.stem}Model"]
    with folder_to_write(path):
        for name in TOKENIZER:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, path / name)
        write_json(path / "config.json", config)
        write_safetensors(path / SINGLE, weights, dtype)
        if not classifier:
            _write_modules(path, encoder, source, dtype)
    return path


def _write_modules(path: Path, encoder: TextEncoder, source: EncoderFolder, dtype: str) -> None:
    """Write what sentence-transformers reads beside the weights."""
    width = encoder.width
    modes = {key: mode == encoder.pooling for key, mode in _POOLED.items()}
    (path / "1_Pooling").mkdir(exist_ok=True)
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | modes)
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for dense, module in zip(encoder.dense, source.dense, strict=True):
        folder = f"{len(listed)}_Dense"
        (path / folder).mkdir(exist_ok=True)
        torch_name = next(name for name, ours in _TORCH.items() if ours == module.activation)
        place = "linear.Identity" if torch_name == "Identity" else f"activation.{torch_name}"
        write_json(path / folder / "config.json", {
            "in_features": module.inputs, "out_features": module.outputs, "bias": module.bias,
            "activation_function": f"torch.nn.modules.{place}",
        })  # fmt: skip
        write_safetensors(path / folder / SINGLE, {n: p.detach() for n, p in dense.named_parameters()}, dtype)
        listed.append((folder, "Dense"))
    if source.normalizes:
        folder = f"{len(listed)}_Normalize"
        (path / folder).mkdir(exist_ok=True)
        listed.append((folder, "Normalize"))
    write_json(path / MODULES, [
        {"idx": i, "name": str(i), "path": folder, "type": _NAMESPACE + kind} for i, (folder, kind) in enumerate(listed)
    ])  # fmt: skip
    write_json(path / PROMPTS, {"prompts": dict(source.prompts), "similarity_fn_name": "cosine"})
    write_json(path / LENGTH, {"max_seq_length": source.most, "do_lower_case": False})


def _opened(path: Path, config: Json, family: EncoderFamily) -> EncoderFolder:
    offset = config.get("pad_token_id", 1) + 1 if family.closings > 1 else 0
    lengths = [config["max_position_embeddings"] - offset]
    for name, key in ((LENGTH, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        value = _read(path / name).get(key) if (path / name).is_file() else None
        lengths += [int(value)] if isinstance(value, int | float) and 0 < value < 1 << 30 else []
    most = min(lengths)
    prompts = (_read(path / PROMPTS).get("prompts") if (path / PROMPTS).is_file() else None) or {}
    if not (path / MODULES).is_file():
        pooling = _pooling(path / "1_Pooling") if (path / "1_Pooling").is_dir() else "mean"
        return EncoderFolder(path, config, family, most, pooling, prompts=prompts)
    pooling, dense, normalizes = "mean", [], False
    for module in json.loads((path / MODULES).read_text(encoding="utf-8")):
        kind, folder = str(module["type"]).rpartition(".")[2], path / str(module["path"])
        if not folder.resolve().is_relative_to(path.resolve()):
            raise FormatError(f"{MODULES} names a folder outside {path.name}", "get it again")
        if kind == "Pooling":
            pooling = _pooling(folder)
        elif kind == "Dense":
            dense.append(_dense(folder))
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Transformer" or folder != path / "":
            raise FormatError(
                f"{path.name} has a module {kind} in {module['path'] or '.'}, which is not known here",
                "known: Transformer at the top, Pooling, Dense, Normalize",
            )
    return EncoderFolder(path, config, family, most, pooling, tuple(dense), normalizes, prompts)


def _pooling(folder: Path) -> str:
    config = _read(folder / "config.json")
    on = [mode for key, mode in _POOLED.items() if config.get(key)]
    modes = [config["pooling_mode"]] if "pooling_mode" in config else on
    unknown = [key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in _POOLED]
    if unknown or len(modes) != 1 or modes[0] not in POOLINGS:
        raise FormatError(
            f"its pooling is {unknown or modes}, which is not known here", f"known: {', '.join(POOLINGS)}"
        )
    return str(modes[0])


def _dense(folder: Path) -> DenseModule:
    config = _read(folder / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _TORCH:
        raise FormatError(f"the activation of {folder.name} is {name}", f"known: {', '.join(_TORCH)}")
    return DenseModule(folder, config["in_features"], config["out_features"], config.get("bias", True), _TORCH[name])


def _load(module: torch.nn.Module, names: Mapping[str, str], tensors: Mapping[str, LazyTensor]) -> None:
    """Load a module's parameters. names: theirs in the file."""
    if missing := next((name for name in names.values() if name not in tensors), None):
        raise FormatError(f"the file has no {missing}", "it is not a whole model")
    found = {own: torch.tensor(tensors[name].load()).float() for own, name in names.items()}
    wrong = next((n for n, t in module.named_parameters() if n in found and found[n].shape != t.shape), None)
    if wrong:
        raise FormatError(f"{names[wrong]} is {tuple(found[wrong].shape)}", "config.json and the weights disagree")
    missed = module.load_state_dict(found, strict=False).missing_keys
    if missed:
        raise FormatError(f"there are no weights for {missed[0]}", "config.json and the weights disagree")


def _read(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise FormatError(f"{path.name} of {path.parent.name} cannot be read: {str(e)[:100]}", "get it again") from None
    return found if isinstance(found, dict) else {}
