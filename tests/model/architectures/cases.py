"""Each family's TINY, found by the registry, and variants of some that switch on what TINY leaves off."""

from collections.abc import Iterable

import pytest
import torch

from settle.base.errors import FormatError
from settle.model.architectures import Architecture
from settle.model.architectures._plain import plain_families
from settle.model.architectures.falcon_h1 import FalconH1
from settle.model.architectures.gemma2 import Gemma2
from settle.model.architectures.gemma3_text import Gemma3Text
from settle.model.architectures.gemma3n_text import Gemma3nText
from settle.model.architectures.gemma4_text import Gemma4Text
from settle.model.architectures.gpt_neox import GptNeoX
from settle.model.architectures.gpt_oss import GptOss
from settle.model.architectures.granite import Granite
from settle.model.architectures.granitemoe import GraniteMoe
from settle.model.architectures.granitemoehybrid import GraniteMoeHybrid
from settle.model.architectures.lfm2 import Lfm2
from settle.model.architectures.lfm2_moe import Lfm2Moe
from settle.model.architectures.llama import Llama
from settle.model.architectures.mixtral import Mixtral
from settle.model.architectures.olmo2 import Olmo2
from settle.model.architectures.olmo3 import Olmo3
from settle.model.architectures.olmoe import Olmoe
from settle.model.architectures.phi3 import Phi3
from settle.model.architectures.qwen2 import Qwen2
from settle.model.architectures.qwen2_moe import Qwen2Moe
from settle.model.architectures.qwen3_5_moe_text import Qwen35MoeText
from settle.model.architectures.qwen3_5_text import Qwen35Text
from settle.model.architectures.qwen3_moe import Qwen3Moe
from settle.model.architectures.qwen3_next import Qwen3Next
from settle.model.architectures.smollm3 import SmolLM3
from settle.model.families import families
from settle.model.layers.rope import RopeScaling

LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LONGROPE = RopeScaling(
    rope_type="longrope",
    short_factor=(1.0, 1.1, 1.3),
    long_factor=(1.5, 3.0, 4.0),
    original_max_position_embeddings=16,
)
YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LOUD, STEEP = (
    YARN.model_copy(update=u)
    for u in ({"attention_factor": 1.25}, {"beta_fast": 4.0, "beta_slow": 0.1, "truncate": False})
)
BIASES = ("attention_bias", "out_bias", "mlp_bias")
LINEAR = RopeScaling(rope_type="linear", factor=4.0)


def _with(part: Architecture, **fields: object) -> Architecture:
    return type(part)(**part.model_dump() | fields)


DENSE_GRANITE = _with(GraniteMoeHybrid.TINY, num_experts=0, num_experts_per_tok=0, moe_intermediate_size=128)
CASES: dict[str, Architecture] = {name: family.TINY for name, family in families().items()} | {
    "llama-biases-tied": _with(Llama.TINY, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-3": _with(Llama.TINY, rope_scaling=LLAMA3, rope_theta=500.0, eos_token_id=(3, 5)),
    "llama-linear": _with(Llama.TINY, rope_scaling=LINEAR, num_key_value_heads=4),
    "falcon_h1-norms": _with(FalconH1.TINY, mamba_rms_norm=True, mamba_n_groups=1),
    "falcon_h1-norms-first": _with(
        FalconH1.TINY,
        mamba_rms_norm=True,
        mamba_norm_before_gate=True,
        mamba_conv_bias=False,
        tie_word_embeddings=True,
        key_multiplier=1.0,
    ),
    "lfm2-biases": _with(Lfm2.TINY, conv_bias=True, conv_L_cache=4, tie_word_embeddings=False),
    "lfm2_moe-others": _with(
        Lfm2Moe.TINY,
        num_dense_layers=0,
        use_expert_bias=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        conv_bias=True,
        tie_word_embeddings=False,
    ),
    "qwen3_5_moe_text-others": _with(
        Qwen35MoeText.TINY, linear_num_value_heads=2, num_experts_per_tok=2, tie_word_embeddings=True
    ),
    "qwen3_5_text-even": _with(
        Qwen35Text.TINY,
        linear_num_value_heads=2,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=3,
        partial_rotary_factor=0.5,
        tie_word_embeddings=True,
        full_attention_interval=3,
    ),
    "mixtral-linear": _with(Mixtral.TINY, rope_scaling=LINEAR, num_experts_per_tok=1, tie_word_embeddings=True),
    "qwen2-windows": _with(Qwen2.TINY, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen2_moe-normed": _with(Qwen2Moe.TINY, norm_topk_prob=True, tie_word_embeddings=True, num_key_value_heads=4),
    "qwen3_next-others": _with(
        Qwen3Next.TINY,
        linear_num_value_heads=2,
        linear_value_head_dim=16,
        full_attention_interval=3,
        partial_rotary_factor=0.5,
        norm_topk_prob=False,
        tie_word_embeddings=True,
    ),
    "qwen3_moe-unnormed": _with(Qwen3Moe.TINY, norm_topk_prob=False, tie_word_embeddings=True),
    "gemma2-scalar": _with(Gemma2.TINY, query_pre_attn_scalar=24, attn_logit_softcapping=None),
    "gemma3_text-linear": _with(Gemma3Text.TINY, rope_scaling=LINEAR, rope_local_base_freq=300.0, rope_theta=20000.0),
    "gemma3n_text-lenders": _with(  # whose gates are open in some layers only
        Gemma3nText.TINY,
        num_kv_shared_layers=2,
        num_sparse_layers=3,
        activation_sparsity=0.5,
        layer_types=("sliding_attention", "full_attention") * 2 + ("full_attention",),
        vocab_size_per_layer_input=40,
        hidden_size_per_layer_input=16,
        altup_num_inputs=3,
        laurel_rank=8,
        final_logit_softcapping=3.0,
    ),
    "gemma4_text-plain": _with(
        Gemma4Text.TINY,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
        tie_word_embeddings=False,
        rope_theta=500.0,
        partial_rotary_factor=1.0,
    ),
    "gemma4_text-lenders": _with(  # the two before the last layers are not one that slides and one that does not
        Gemma4Text.TINY, num_kv_shared_layers=1, use_double_wide_mlp=False, num_key_value_heads=1
    ),
    "phi3-longrope": _with(
        Phi3.TINY, rope_scaling=LONGROPE, original_max_position_embeddings=16, partial_rotary_factor=0.75
    ),
    "phi3-window": _with(Phi3.TINY, sliding_window=8, num_key_value_heads=1),
    "gpt_oss-others": _with(
        GptOss.TINY,
        layer_types=("full_attention", "sliding_attention"),
        rope_scaling=YARN.model_copy(update={"truncate": False, "beta_fast": 2.0}),
        rope_theta=20.0,
        tie_word_embeddings=True,
        num_experts_per_tok=3,
    ),
    "gpt_oss-plain": _with(GptOss.TINY, rope_scaling=None, sliding_window=5, num_key_value_heads=1),
    "granite-biases-tied": _with(Granite.TINY, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "granitemoe-biases": _with(
        GraniteMoe.TINY, attention_bias=True, num_experts_per_tok=3, tie_word_embeddings=True, rope_scaling=LINEAR
    ),
    "granitemoehybrid-attention": _with(
        DENSE_GRANITE, layer_types=("attention",) * 3, position_embedding_type="rope", tie_word_embeddings=True
    ),
    "granitemoehybrid-dense": DENSE_GRANITE,
    "granitemoehybrid-others": _with(
        GraniteMoeHybrid.TINY,
        num_experts_per_tok=3,
        attention_bias=True,
        position_embedding_type="rope",
        mamba_n_groups=2,
        num_key_value_heads=1,
    ),
    "granitemoehybrid-unbiased": _with(DENSE_GRANITE, mamba_conv_bias=False, mamba_d_conv=3),
    "smollm3-yarn": _with(SmolLM3.TINY, rope_scaling=LOUD, tie_word_embeddings=False),
    "smollm3-others": _with(SmolLM3.TINY, no_rope_layers=(0, 1, 1, 0), attention_bias=True, rope_scaling=STEEP),
    "gpt_neox-in-turn": _with(GptNeoX.TINY, use_parallel_residual=False, hidden_act="gelu_fast", rotary_pct=1.0),
    "olmoe-others": _with(Olmoe.TINY, norm_topk_prob=True, num_key_value_heads=2, tie_word_embeddings=True),
    "olmo2-tied": _with(Olmo2.TINY, tie_word_embeddings=True, num_key_value_heads=4),
    "olmo3-yarn": _with(Olmo3.TINY, rope_scaling=YARN, rope_theta=1000.0, num_key_value_heads=1),
}

PLAIN = plain_families()
CASES |= {
    "seed_oss-biases": _with(PLAIN["seed_oss"].TINY, out_bias=True, mlp_bias=True, head_dim=16),
    "ernie4_5-biases": _with(PLAIN["ernie4_5"].TINY, attention_bias=True, out_bias=True, mlp_bias=True),
    "starcoder2-window": _with(
        PLAIN["starcoder2"].TINY, sliding_window=8, tie_word_embeddings=False, **dict.fromkeys(BIASES, False)
    ),
    "stablelm-biases": _with(PLAIN["stablelm"].TINY, attention_bias=True, partial_rotary_factor=0.5),
    "olmo-clipped": _with(PLAIN["olmo"].TINY, clip_qkv=0.7, tie_word_embeddings=True),
    "gemma-biases": _with(PLAIN["gemma"].TINY, attention_bias=True, out_bias=True, tie_word_embeddings=False),
    "glm4-tied": _with(PLAIN["glm4"].TINY, attention_bias=False, tie_word_embeddings=True, partial_rotary_factor=1.0),
}


def _beyond_gguf(part: Architecture) -> bool:
    try:
        part.gguf_metadata()
    except FormatError:
        return True
    return False


# Families whose layers are those of others with other switches: names, settings, files and logits are compared for each
# of them, and what is tried of families beside that is tried of these by `make test-all` alone.
SHARED = {"ernie4_5", "gemma", "granite", "mimo", "mistral", "mixtral", "olmo3", "qwen3", "seed_oss", "smollm3"}


def further(name: str) -> bool:
    """Return whether a case is of a family whose layers others share."""
    return name.partition("-")[0] in SHARED


def each(names: Iterable[str]) -> list[object]:
    """Return cases as parameters of a test, the further ones as exhaustive."""
    return [pytest.param(name, id=name, marks=pytest.mark.exhaustive if further(name) else ()) for name in names]


BEYOND_GGUF = {name for name, part in CASES.items() if _beyond_gguf(part)}


# families whose models bring code of their own: transformers knows the same layers under another name
STAND_INS = {"mimo": "qwen2"}


def as_transformers_knows_it(part: Architecture) -> dict[str, object]:
    """Return a `config.json` that transformers has a class for, without dropout."""
    config = part.to_hf_config() | dict.fromkeys(("attention_dropout", "residual_dropout"), 0.0)
    return config | {"model_type": STAND_INS.get(part.model_type, part.model_type)}


def score_factor(part: Architecture) -> float:
    """What a test multiplies the weight of a query head's norm by, so that scores are no larger than elsewhere."""
    layer = part.options().layers[0]
    return layer.head_dim**-0.5 / (layer.query_scale or layer.head_dim**-0.5)


def random_model(part):
    """A model whose every tensor has a say in what comes next."""
    model = part.skeleton("cpu")
    random = torch.Generator().manual_seed(0)
    offset = part.options().layers[0].norm_offset
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("norm.weight"):
                weight.copy_(1 - offset + noise * 0.2)
                if name.endswith("q_norm.weight"):
                    weight.mul_(score_factor(part))
            elif name.endswith("layer_scalar.weight"):
                weight.copy_(1 + noise * 0.3)
            elif weight.ndim == 1:
                weight.copy_(noise * 0.5)
            else:
                weight.copy_(noise * (1.5 / weight.shape[-1] ** 0.5))
    return model
