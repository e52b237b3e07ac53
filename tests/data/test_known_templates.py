"""The templates that go with models that have none read in llama.cpp as they read here."""

import re
from pathlib import Path
from typing import Any

import pytest

from settle.base.chat_template import ChatTemplate
from settle.data.rows.render import KNOWN
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.model.architectures.llama import Llama
from tests.data.test_supervision import CHAT, SYSTEM, TOOL, TOOLS


@pytest.mark.parametrize("name", KNOWN)
def test_llama_cpp_renders_the_same(name: str, tmp_path: Path) -> None:
    tokenizer = ByteBpeTokenizer.train(["the sea is grey"], 264, tmp_path / "tokenizer")
    tokenizer.chat_template = KNOWN[name]
    part = Llama.TINY.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = part.build(seed=0)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    path = export_gguf(part, weights, tokenizer, tmp_path / "tiny.gguf", "f32")
    template = ChatTemplate(KNOWN[name], *(tokenizer.tokens[i] for i in (tokenizer.bos_id, tokenizer.eos_id)))
    asked: list[tuple[list[Any], list[Any]]] = [(CHAT[:1], []), (CHAT[:3], []), ([SYSTEM, *CHAT[:3]], [])]
    if name == "chatml":
        asked += [(TOOLS[:1], [TOOL]), (TOOLS[:3], [TOOL]), ([SYSTEM, *TOOLS[:3]], [TOOL, TOOL])]
    with Engine(path) as engine:
        for messages, tools in asked:
            ours = template.render(messages, tools, add_generation_prompt=True)
            assert engine.render(messages, tools) == ours
            assert bool(re.search("weather", ours)) == bool(tools)
