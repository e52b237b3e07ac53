"""A transformer in Hugging Face's layout."""

from typing import ClassVar, Self

from pydantic import ValidationError

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section, whole
from settle.model.architectures._contract import HfConfig
from settle.model.architectures._size import TransformerSize
from settle.model.layers.rope import RopeScaling

_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # None says: off


class TransformerHf(TransformerSize):
    """HF_DEFAULTS: values of keys that a `config.json` leaves out. HF_FIXED: keys with the one supported value."""

    HF_CLASS: ClassVar[str]
    HF_DEFAULTS: ClassVar[dict[str, object]] = {}
    HF_FIXED: ClassVar[dict[str, object]] = {"hidden_act": "silu"}

    def hf_names(self) -> dict[str, str]:
        return {name: name for name in self.parameters()}

    def to_hf_config(self) -> dict[str, object]:
        config: dict[str, object] = {
            "architectures": [self.HF_CLASS],
            "model_type": self.model_type,
            "dtype": "float32",
        }
        config |= self.HF_FIXED | self.model_dump(mode="json", exclude={"rope_scaling"})
        if self.rope_scaling is not None:
            config["rope_scaling"] = self.rope_scaling.to_hf()
        return config

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> Self:
        for key, done in {"model_type": cls.model_type, "quantization_config": None, **cls.HF_FIXED}.items():
            if config.get(key, done) not in (done, None):
                raise FormatError(
                    f"{key} = {config[key]!r} is not supported for {cls.model_type}", f"only {done!r} is supported"
                )
        try:
            return cls.model_validate(cls.hf_values(config))
        except KeyError as e:
            raise FormatError(f"config.json has no {e.args[0]}", "get the file again") from None
        except ValidationError as e:
            raise FormatError(f"config.json cannot be used: {first_error(e)}", "get the file again") from None

    @classmethod
    def hf_values(cls, config: HfConfig) -> dict[str, object]:
        """The fields that a `config.json` gives; those it leaves out as Hugging Face's class has them."""
        values = dict(cls.HF_DEFAULTS)
        for name in cls.model_fields:
            if config.get(name) is not None or (name in config and name in _NULLABLE):
                values[name] = config[name]
        values.setdefault("num_key_value_heads", config["num_attention_heads"])
        values.setdefault("head_dim", whole(config, "hidden_size") // whole(config, "num_attention_heads"))
        rope = section(config, "rope_parameters") or section(config, "rope_scaling")
        if rope.get("rope_theta") is not None:
            values["rope_theta"] = rope["rope_theta"]
        values["rope_scaling"] = RopeScaling.from_hf(rope)
        return values


def first_error(error: ValidationError) -> str:
    """Which value is wrong, and how."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
