"""The models that the tuning benches start from, as Hugging Face folders that every side reads.

    python bench/tune_models.py shape qwen2-0.5b SMOLLM2.gguf OUT      # random weights of that shape
    python bench/tune_models.py gguf SMOLLM2.gguf OUT                  # the weights of a GGUF, as bf16

The tokenizer comes from the GGUF, the chat template is ChatML's or Gemma's with the newline between turns.
A shape's vocabulary is its own size, larger than the tokenizer's: the head costs what it costs in that model.
Needs transformers and gguf (the `dev` extra).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

# published config.json values
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
    },
    "llama-3.2-3b": {
        "model_type": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}
# the newline stands between turns, not after each, so that every side supervises the same tokens: up to the turn's end
CHATML = (
    "{% for message in messages %}{% if not loop.first %}\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}\n{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>{% endfor %}"
    "{% if add_generation_prompt %}\n<start_of_turn>model\n{% endif %}"
)


def save_tokenizer(gguf: Path, out: Path) -> None:
    """Write the GGUF's tokenizer with the template the benches use; turns end with the template's own token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    gemma = "<start_of_turn>" in tokenizer.get_vocab()
    tokenizer.chat_template = GEMMA if gemma else CHATML
    tokenizer.eos_token = "<end_of_turn>" if gemma else "<|im_end|>"
    tokenizer.save_pretrained(out)
    for turn in (tokenizer.eos_token, "def f(x):\n    return x"):
        ids = tokenizer.encode(turn, add_special_tokens=False)
        if tokenizer.decode(ids) != turn or (turn == tokenizer.eos_token and len(ids) != 1):
            raise SystemExit(f"the tokenizer of {gguf} does not give {turn!r} back: {ids}")


def with_older_names(folder: Path) -> None:
    """Give config.json the rope bases where older readers look for them too: MLX-LM takes its default otherwise."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config["rope_parameters"]
    if "full_attention" in rope:  # Gemma 3
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    else:
        config["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            config["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def as_read(folder: Path) -> None:
    """Write the tokenizer as transformers reads it back: some families cut text before merging in their own way."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def shape(name: str, gguf: Path, out: Path) -> None:
    """Write a folder with seeded random weights (standard deviation 0.02) of a published shape, in bf16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tokenizer(gguf, out)
    config = AutoConfig.for_model(**SHAPES[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(out)


def from_gguf(gguf: Path, out: Path) -> None:
    """Write a folder with the GGUF's weights, dequantized and rounded to bf16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tokenizer(gguf, out)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = AutoConfig.for_model(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # one that may be saved unquantized
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    random = commands.add_parser("shape")
    random.add_argument("name", choices=sorted(SHAPES))
    read = commands.add_parser("gguf")
    for command in (random, read):
        command.add_argument("gguf", type=Path)
        command.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.command == "shape":
        shape(asked.name, asked.gguf, asked.out)
    else:
        from_gguf(asked.gguf, asked.out)
    with_older_names(asked.out)
    as_read(asked.out)
    print(json.dumps({"out": str(asked.out), "bytes": sum(p.stat().st_size for p in asked.out.iterdir())}))


if __name__ == "__main__":
    main()
