"""The ids that llama.cpp gives for texts, by a model of nothing but a vocabulary."""

from collections.abc import Sequence
from pathlib import Path

from settle.base.tokenizer import Tokenizer
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.model.architectures.llama import Llama


def llama_of(tokenizer: Tokenizer, path: Path, padding: int = 0) -> Engine:
    """Return an engine over a tiny model with that vocabulary, written to `path`."""
    part = Llama(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, vocab_size=tokenizer.vocab_size + padding, max_position_embeddings=64,
    )  # fmt: skip
    export_gguf(part, {name: p.detach() for name, p in part.build(0).named_parameters()}, tokenizer, path)
    return Engine(path, threads=1)


def ids_of(llama: Engine, texts: Sequence[str], between: int, specials: bool = False) -> list[list[int]]:
    """Return the ids of each text, asked for at once. between: an id that none of them has, which parts them."""
    content = [item for text in texts for item in (text, between)]
    body = {"content": content, "add_special": False, "parse_special": specials}
    found: list[list[int]] = [[]]
    for number in llama._child.post("/tokenize", body)["tokens"]:
        if number == between:
            found.append([])
        else:
            found[-1].append(number)
    return found[:-1]
