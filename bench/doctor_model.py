"""A tiny model of a family that the doctor's checks were not built on, to be looked at by bench/doctor.py.

    python bench/doctor_model.py OUT.gguf [--family gemma2] && python bench/doctor.py OUT.gguf [--healthy]

Qwen3 with Gemma's turns, Phi-3 with Seed's, or Gemma 2 with Granite's and Qwen2's way of cutting texts, in a byte-level
vocabulary, trained for a minute on the doctor's own prose and answers: only what a model knows can become less likely
by a fault.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from settle.data.rows.render import GEMMA
from settle.data.tokenizer.byte_bpe import PADDING, SPECIALS, ByteBpeTokenizer
from settle.data.tokenizer.pre_tokenizers import WAYS
from settle.doctor.known_answers import KNOWN_ANSWERS, PARAGRAPHS, PROSE, SPELLED
from settle.doctor.turns import FORMS
from settle.formats.gguf import export_gguf, read_gguf, write_edited
from settle.formats.gguf.metadata import TOKENS
from settle.library.facts import PLAIN_TEXT_KEY, TEMPLATE_KEY
from settle.model.architectures.gemma2 import Gemma2
from settle.model.architectures.phi3 import Phi3
from settle.model.architectures.qwen3 import Qwen3

STEPS, DOCUMENTS, RATE, VOCABULARY = 160, 14, 4e-3, 800


class Family(NamedTuple):
    """How the tiny model of a family differs from the others.

    part: its architecture. settings: beyond those that every tiny model has. template: its chat template. turn: a
    question and its answer in those turns, in ChatML's tokens, which `names` renames. seed: of weights and rows. pre:
    how texts are cut before merging. opened: every text begins with a token of its own, the one for padding, and the
    token that ends a text ends an answer.
    """

    part: type[Qwen3] | type[Phi3] | type[Gemma2]
    settings: Mapping[str, object]
    template: str
    turn: str
    names: Mapping[str, str]
    seed: int
    pre: str = ByteBpeTokenizer.pre
    opened: bool = False


FAMILIES = {
    "qwen3": Family(
        Qwen3,
        {"hidden_size": 96, "intermediate_size": 192, "rope_theta": 1e5, "num_attention_heads": 3},
        GEMMA,
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>model\n{answer}<|im_end|>\n",
        {"<|im_start|>": "<start_of_turn>", "<|im_end|>": "<end_of_turn>"},
        7,
    ),
    "phi3": Family(
        Phi3,
        {"hidden_size": 128, "intermediate_size": 224, "rope_theta": 1e4, "num_attention_heads": 4},
        FORMS["seed"].template,
        "<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n{answer}<|im_end|>",
        {"<|im_start|>": "<seed:bos>", "<|im_end|>": "<seed:eos>"},
        11,
    ),
    "gemma2": Family(
        Gemma2,
        {
            "hidden_size": 112, "intermediate_size": 256, "rope_theta": 1e4, "num_attention_heads": 4,
            "query_pre_attn_scalar": 32, "sliding_window": 256,
        },
        FORMS["granite"].template,
        "<|im_start|>user<|im_end|>{question}<|endoftext|>\n<|im_start|>assistant<|im_end|>{answer}<|endoftext|>\n",
        {
            "<|im_start|>": "<|start_of_role|>", "<|im_end|>": "<|end_of_role|>", "<|endoftext|>": "<|end_of_text|>",
            PADDING: "<bos>",
        },
        23,
        pre="qwen2",
        opened=True,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="qwen3")
    asked = parser.parse_args()
    out, family = asked.out, FAMILIES[asked.family]
    turns = [family.turn.format(question=known.question, answer=known.answer) for known in KNOWN_ANSWERS]
    texts = PROSE + SPELLED + PARAGRAPHS
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(family.pre, texts + turns, Path(folder))
        opening = tokenizer.pad_id if family.opened else tokenizer.bos_id
        part = family.part(
            num_hidden_layers=3, num_key_value_heads=1, head_dim=32, vocab_size=tokenizer.vocab_size,
            max_position_embeddings=2048, bos_token_id=opening, eos_token_id=tokenizer.eos_id,
            **family.settings,
        )  # fmt: skip
        model = part.build(seed=family.seed)
        torch.set_num_threads(1)  # two that wait for each other on a busy machine take ten times as long
        first, cap = [opening] if family.opened else [], part.options().logit_soft_cap
        documents = [torch.tensor([*first, *tokenizer.encode(text, True).tolist()]) for text in turns + turns + texts]
        optimizer, random = (
            torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95)),
            np.random.default_rng(family.seed),
        )
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / STEPS))
            chosen = [documents[i] for i in random.choice(len(documents), DOCUMENTS, replace=False)]
            ids, ends = torch.cat(chosen), np.cumsum([len(document) for document in chosen])
            hidden = model(ids, torch.tensor([0, *ends], dtype=torch.int32))
            follows = np.setdiff1d(np.arange(len(ids) - 1), ends - 1)
            logits = hidden[follows] @ model.head.T
            logits = cap * torch.tanh(logits / cap) if cap else logits
            loss = torch.nn.functional.cross_entropy(logits, ids[1:][follows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"loss {float(loss.detach()):.2f} nats per token")
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        made = export_gguf(part, weights, tokenizer, Path(folder) / "made.gguf", "f16")
        tokens = [family.names.get(str(token), token) for token in read_gguf(made).metadata[TOKENS]]
        changes: dict[str, object] = {TOKENS: tokens, TEMPLATE_KEY: family.template, PLAIN_TEXT_KEY: None}
        if family.opened:
            own = {"bos_token_id": opening, "add_bos_token": True, "eot_token_id": tokenizer.eos_id}
            changes |= {f"tokenizer.ggml.{key}": value for key, value in own.items()}
        write_edited(made, out, {**changes, "tokenizer.ggml.pre": family.pre})


def _tokenizer(pre: str, texts: list[str], folder: Path) -> ByteBpeTokenizer:
    """Train settle's own tokenizer on words as `pre` cuts them."""
    tokenizer = ByteBpeTokenizer.train(texts, VOCABULARY, folder)
    if pre == tokenizer.pre:
        return tokenizer
    engine, bytes_alone = Engine.from_file(str(folder / "tokenizer.json")), pre_tokenizers.ByteLevel(False, False)
    words = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in WAYS[pre].patterns]
    engine.model = models.BPE()
    engine.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_alone])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, special_tokens=list(SPECIALS), initial_alphabet=alphabet
    )
    engine.train_from_iterator(texts, trainer)
    engine.save(str(folder / "tokenizer.json"))
    return ByteBpeTokenizer(folder)


if __name__ == "__main__":
    main()
