"""Which family a model's files are of: those with a file in `architectures`, and the rows of its table."""

from settle.base.errors import FormatError
from settle.base.files import JsonObject
from settle.formats.gguf import embeds
from settle.formats.gguf.metadata import section
from settle.model.architectures import Architecture, GgufMetadata, HfConfig, Tensors
from settle.model.architectures._plain import plain_families
from settle.model.nearest import nearest_of_config, nearest_of_gguf

NO_TENSORS: Tensors = {}


def families() -> dict[str, type[Architecture]]:
    """Return every family that can be trained, by its `model_type`."""
    return {**Architecture.parts(), **plain_families()}


def family_named(name: str) -> type[Architecture]:
    """Return the family of that name. Raises UsageError that names the nearest file's when there is none."""
    return plain_families().get(name) or Architecture.part(name)


def of_plan(name: str, fields: JsonObject) -> Architecture:
    """Return the architecture whose family and fields a plan has recorded."""
    return family_named(name).model_validate(dict(fields))


def family_of(model_type: object) -> type[Architecture] | None:
    """Return the family of a `model_type`, of a multimodal checkpoint that of its text model; None for others."""
    known = families()
    by_whole = {name: family for family in known.values() for name in family.MULTIMODAL}
    return (known | by_whole).get(str(model_type))


def text_config(config: HfConfig) -> HfConfig:
    """Return what the `config.json` of a multimodal model says of its text model; of another model all of it."""
    inner = section(config, "text_config")
    if inner and "model_type" not in inner and (family := family_of(config.get("model_type"))):
        inner = {**inner, "model_type": family.model_type}
    whole = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if config.get(key) is not None}
    return {**inner, **whole} if inner else config


def of_hf_config(config: HfConfig, tensors: Tensors = NO_TENSORS) -> Architecture:
    """Return the architecture that a `config.json` describes: of a multimodal model, that of its text model.

    Raises FormatError for a family that is not known: it names the nearest, and what differs; also in tensors.
    """
    config = text_config(config)
    if (family := family_of(config.get("model_type"))) is None:
        raise nearest_of_config(config, tensors, families())
    return family.from_hf_config({**config, "model_type": family.model_type})


def of_gguf(metadata: GgufMetadata, tensors: Tensors) -> Architecture:
    """Return the architecture that a GGUF file describes. Raises FormatError as `of_hf_config` does.

    Of two families that GGUF writes as one (a Mistral is a Llama there) the one that bears its name is taken.
    """
    kind = metadata.get("general.architecture")
    alike = [family for family in families().values() if family.gguf_architecture == kind]
    if not alike:
        if embeds(metadata):
            fix = "tune it on pairs with --objective rank or contrastive, or choose a model that writes"
            raise FormatError("it turns texts into vectors and writes none", fix)
        raise nearest_of_gguf(metadata, tensors, families())
    return max(alike, key=lambda family: family.is_of_gguf(metadata)).from_gguf(metadata, tensors)
