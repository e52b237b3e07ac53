"""What a refusal says of an unknown family: the nearest of the known ones, and what differs in its files."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from settle.base.errors import FormatError
from settle.model.architectures import Architecture, GgufMetadata, HfConfig, Tensors

MOST = 4  # differences of a kind that are named
LEAST_ALIKE = 0.3  # share of names, of both together, that a near family has at least
# keys of a config.json that change nothing of what a model computes from its weights
NEUTRAL = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "embd_pdrop", "embedding_dropout", "eos_token_id", "hidden_dropout",
    "id2label", "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp", "problem_type",
    "quantization_config", "resid_pdrop", "residual_dropout", "return_dict", "router_aux_loss_coef", "torch_dtype",
    "transformers_version", "unk_token_id", "use_cache",
})  # fmt: skip
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert


@dataclass(frozen=True)
class Files:
    """What files say of a model: its family's name, the keys of its settings, and its tensors' shapes."""

    name: str
    keys: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]

    def likeness(self, name: str, keys: Collection[str], tensors: Collection[str]) -> float:
        """Return how near a family is: shares of its keys and tensors, and a little for its name."""
        alike = _share(self.keys, keys) + 2 * _share(self.tensors, _unnumbered(tensors))
        return alike + 0.2 * difflib.SequenceMatcher(None, self.name, name).ratio()

    @property
    def tensors(self) -> frozenset[str]:
        return _unnumbered(self.shapes)

    def differences(self, keys: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return what these files have that a family of those keys and tensors has not, and the other way round."""
        found = [_listed("its setting{} {} {} not known there", sorted(self.keys - set(keys)))]
        if self.shapes:
            theirs, own = _unnumbered(shapes), self.tensors
            found.append(_listed("its tensor{} {} {} not known there", sorted(own - theirs)))
            found.append(_listed("tensor{} {} {} missing", sorted(theirs - own)))
            other = {name for name in set(shapes) & set(self.shapes) if shapes[name] != self.shapes[name]}
            found.append(_listed("tensor{} {} {} of another shape", sorted(_unnumbered(other))))
        return [text for text in found if text]


def nearest_of_config(config: HfConfig, tensors: Tensors, families: Mapping[str, type[Architecture]]) -> FormatError:
    """Return the error for a `config.json` of an unknown family. tensors: of its files, if they are at hand."""
    keys = frozenset(key for key, value in config.items() if value is not None) - NEUTRAL
    files = Files(str(config.get("model_type")), keys, {name: tensor.shape for name, tensor in tensors.items()})

    def near(family: type[Architecture]) -> float:
        return files.likeness(family.model_type, family.hf_keys(), family.TINY.hf_names().values())

    family = max(families.values(), key=near)
    known = f"known are: {', '.join(sorted(families))}"
    if near(family) < LEAST_ALIKE * (3 if tensors else 1):
        return FormatError(f"the architecture {files.name!r} is not known, and no known one is near it", known)
    found: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        part = family.from_hf_config({**config, "model_type": family.model_type})
        if tensors:  # which bound the number of layers
            shapes = {name: part.parameters()[parameter] for parameter, name in part.hf_names().items()}
    except FormatError as e:
        found = [e.what]
        names = _as_many(family.TINY.hf_names().values(), files.shapes)
        shapes = {name: files.shapes.get(name, ()) for name in names}
    found += files.differences(family.hf_keys(), shapes)
    alike = f'if its code computes what a {family.model_type} does, set "model_type": "{family.model_type}" in its '
    return _refusal(files.name, family.model_type, found, f"{alike}config.json; {known}", known)


def nearest_of_gguf(
    metadata: GgufMetadata, tensors: Tensors, families: Mapping[str, type[Architecture]]
) -> FormatError:
    """Return the error for a GGUF file of an unknown family."""
    kind = str(metadata.get("general.architecture"))
    own = {key.removeprefix(f"{kind}."): value for key, value in metadata.items() if key.startswith(f"{kind}.")}
    files = Files(kind, frozenset(own), {name: tensor.shape for name, tensor in tensors.items()})
    known = f"known are: {', '.join(sorted({family.gguf_architecture for family in families.values()}))}"
    if not tensors:
        return FormatError(f"the architecture {kind!r} is not known", known)

    def keys(family: type[Architecture]) -> frozenset[str]:
        return frozenset(key.partition(".")[2] for key in family.TINY.gguf_metadata())

    def near(family: type[Architecture]) -> float:
        return files.likeness(family.gguf_architecture, keys(family), family.TINY.gguf_names().values())

    family = max(families.values(), key=near)
    if near(family) < LEAST_ALIKE * 3:
        return FormatError(f"the architecture {kind!r} is not known, and no known one is near it", known)
    name = family.gguf_architecture
    found: list[str] = []
    renamed = {**metadata, "general.architecture": name, **{f"{name}.{key}": value for key, value in own.items()}}
    try:
        names = [*family.from_gguf(renamed, tensors).gguf_names().values()]
    except FormatError as e:
        found, names = [e.what], _as_many(family.TINY.gguf_names().values(), files.shapes)
    found += files.differences(keys(family), {name: files.shapes.get(name, ()) for name in names})
    return _refusal(kind, name, found, f"get it in Hugging Face's layout; {known}", known)


def _refusal(kind: str, nearest: str, differences: list[str], alike: str, known: str) -> FormatError:
    what = f"the architecture {kind!r} is not known; the nearest one is {nearest}"
    if differences:
        return FormatError(f"{what}, from which it differs: {'; '.join(differences)}", known)
    return FormatError(f"{what}, whose settings and tensors it has, though its code may compute another thing", alike)


def _share(some: Collection[str], others: Collection[str]) -> float:
    return len(set(some) & set(others)) / max(1, len(set(some) | set(others)))


def _unnumbered(names: Collection[str]) -> frozenset[str]:
    return frozenset(_NUMBER.sub("*", name) for name in names)


def _as_many(names: Collection[str], like: Collection[str]) -> list[str]:
    """Return a small model's names, of as many layers and experts as these names have."""
    wanted = _unnumbered(names)
    found = [name for name in like if _NUMBER.sub("*", name) in wanted]
    return found + [name for name in names if _NUMBER.sub("*", name) not in _unnumbered(found)]


def _listed(text: str, names: list[str]) -> str:
    """Return a sentence with the first of these names; nothing if there are none."""
    some = names[:MOST] + [f"{len(names) - MOST} more"] * (len(names) > MOST)
    return text.format("s" * (len(names) > 1), ", ".join(some), "are" if len(names) > 1 else "is") if names else ""
