"""A tiny BERT with random weights in Hugging Face's layout, as sentence-transformers saves one, and what it answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TEXTS = [
    "How do I rotate the key?", "Restart the SERVER, now…", "a naïve café — 東京 ßtraße x₂ 🦀", "of", "don't [SEP] stop"
]  # fmt: skip


def tiny_bert(folder: Path, pooling: str = "mean", seed: int = 0) -> Path:
    """Writes it; 64 positions, 64 wide, 2 layers."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | modes))
    return folder


def reference(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """float32 (len(texts), 64), each of length 1, by transformers in fp32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

    model, tokenizer = BertModel.from_pretrained(folder).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    modes = json.loads((folder / "1_Pooling" / "config.json").read_text())
    rows = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        pooled = hidden[0] if modes["pooling_mode_cls_token"] else hidden.mean(0)
        rows.append((pooled / pooled.norm()).numpy())
    return np.stack(rows)


def _tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *".,?!'-—…東"]
    tokens += ["the", "of", "and", "key", "rotate", "how", "server", "restart", "passage", "query", "cafe", "naive"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
