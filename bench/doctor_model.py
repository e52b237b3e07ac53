"""A tiny model of a family that the doctor's checks were not built on, to be looked at by bench/doctor.py.

    python bench/doctor_model.py OUT.gguf && python bench/doctor.py OUT.gguf [--healthy]

Qwen3 with Gemma's turns, in a byte-level vocabulary, trained for a minute on the doctor's own prose and answers: only
what a model knows can become less likely by a fault.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from settle.data.rows.known_templates import GEMMA
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.doctor.known_answers import KNOWN_ANSWERS, PARAGRAPHS, PROSE, SPELLED
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.gguf.edit import write_edited
from settle.formats.gguf.metadata import TOKENS
from settle.library.facts import PLAIN_TEXT_KEY, TEMPLATE_KEY
from settle.model.architectures.qwen3 import Qwen3

STEPS, DOCUMENTS, RATE = 160, 14, 4e-3
NAMES = {"<|im_start|>": "<start_of_turn>", "<|im_end|>": "<end_of_turn>"}


def main() -> None:
    out = Path(sys.argv[1])
    turns = [
        f"<|im_start|>user\n{known.question}<|im_end|>\n<|im_start|>model\n{known.answer}<|im_end|>\n"
        for known in KNOWN_ANSWERS
    ]
    texts = PROSE + SPELLED + PARAGRAPHS
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = ByteBpeTokenizer.train(texts + turns, 800, Path(folder))
        part = Qwen3(
            hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
            head_dim=32, vocab_size=tokenizer.vocab_size, max_position_embeddings=2048, rope_theta=1e5,
            bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        )  # fmt: skip
        model = part.build(seed=7)
        documents = [torch.from_numpy(tokenizer.encode(text, True).astype("int64")) for text in turns + turns + texts]
        optimizer, random = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95)), np.random.default_rng(7)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / STEPS))
            chosen = [documents[i] for i in random.choice(len(documents), DOCUMENTS, replace=False)]
            ids, ends = torch.cat(chosen), np.cumsum([len(document) for document in chosen])
            hidden = model(ids, torch.tensor([0, *ends], dtype=torch.int32))
            follows = np.setdiff1d(np.arange(len(ids) - 1), ends - 1)
            loss = torch.nn.functional.cross_entropy(hidden[follows] @ model.head.T, ids[1:][follows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"loss {float(loss):.2f} nats per token")
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        made = export_gguf(part, weights, tokenizer, Path(folder) / "made.gguf", "f16")
        tokens = [NAMES.get(str(token), token) for token in read_gguf(made).metadata[TOKENS]]
        write_edited(made, out, {TOKENS: tokens, TEMPLATE_KEY: GEMMA, PLAIN_TEXT_KEY: None})


if __name__ == "__main__":
    main()
