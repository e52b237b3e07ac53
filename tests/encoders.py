"""Tiny encoders of every family with random weights, as transformers saves them."""

import json
from pathlib import Path

from tests.bert import _tokenizer

_BASE = {
    "vocab_size": 98, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
_MODERN = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CASES = {
    "bert": {"model_type": "bert"},
    "xlm-roberta": {
        "model_type": "xlm-roberta", "type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66,
    },
    "modernbert": {"model_type": "modernbert", **_MODERN, "local_attention": 8},
    "modernbert-biases": {
        "model_type": "modernbert", **_MODERN, "local_attention": 6, "global_attn_every_n_layers": 2,
        "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
        "classifier_pooling": "mean",
    },
    "deberta-v3": {
        "model_type": "deberta-v2", **_RELATIVE, "position_buckets": 4, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0,
    },
    "deberta-v2-convolution": {
        "model_type": "deberta-v2", **_RELATIVE, "max_relative_positions": 5, "type_vocab_size": 2,
        "conv_kernel_size": 3,
    },
    "deberta-v2-narrow": {"model_type": "deberta-v2", **_RELATIVE, "pos_att_type": "c2p", "embedding_size": 16},
}  # fmt: skip


def tiny_encoder(
    folder: Path, case: str = "modernbert", kind: str = "Model", labels: int = 1, spread: float = 0.3, seed: int = 0
) -> Path:
    """Write one; kind: "Model", "ForSequenceClassification" or "ForTokenClassification"."""
    import torch
    import transformers

    torch.manual_seed(seed)
    given = {**_BASE, **CASES[case], "num_labels": labels, "initializer_range": spread}
    config = transformers.AutoConfig.for_model(**given)
    model = getattr(transformers, f"AutoModel{kind.removeprefix('Model')}").from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # norms and biases begin as ones and zeros
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "classifier" in name or "pooler" in name or "head" in name:
                weight.copy_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder
