"""Chat templates of well-known families, written from their published formats, and tokenizers that fit them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from settle.data.tokenizer.vocabulary import BYTE_CHARACTERS

CHATML = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""
SMOLLM2 = (
    """{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful AI assistant<|im_end|>\\n' -}}
{%- endif -%}"""
    + CHATML
)
_QWEN_HEAD = """{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif -%}
{{- '# Tools\\n<tools>' -}}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor -%}
{{- '\\n</tools><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}"""
_QWEN_CALLS = """{%- for call in m.tool_calls or [] -%}
{{- '\\n' if m.content or not loop.first -}}
{{- '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson -}}
{{- '\\n</tool_call>' -}}
{%- endfor -%}"""
_QWEN_RESULT = """{{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' -}}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' -}}"""
QWEN2 = (
    _QWEN_HEAD
    + """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + m.content -}}"""
    + _QWEN_CALLS
    + """{{- '<|im_end|>\\n' -}}
{%- elif m.role == 'tool' -%}"""
    + _QWEN_RESULT
    + """{%- elif m.role == 'user' or not loop.first -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""
)
# thoughts stay in the answers after the last question and leave those before it
QWEN3 = (
    _QWEN_HEAD
    + """{%- set ns = namespace(last=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' -%}
{%- set content = m.content -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}"""
    + _QWEN_CALLS
    + """{{- '<|im_end|>\\n' -}}
{%- elif m.role == 'tool' -%}"""
    + _QWEN_RESULT
    + """{%- elif m.role == 'user' or not loop.first -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}
{%- endif -%}"""
)
GEMMA2 = """{{- bos_token -}}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim -}}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}"""
GEMMA3 = """{{- bos_token -}}
{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- for m in (messages[1:] if first else messages) -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}
{{- (first if loop.first else '') + m.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}"""
LLAMA3 = """{{- bos_token -}}
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}
{%- set told = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date + '\\n\\n' + told + '<|eot_id|>' -}}
{%- for m in (messages[1:] if messages[0].role == 'system' else messages) -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif -%}
{%- set call = m.tool_calls[0].function -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' -}}
{{- call.arguments | tojson }}{{ '}<|eot_id|>' -}}
{%- elif m.role == 'tool' -%}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' -}}
{%- else -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' -}}
{%- if tools and loop.first -%}
{{- 'These functions may be called:\\n' -}}
{%- for tool in tools %}{{ tool | tojson(indent=4) + '\\n\\n' }}{% endfor -%}
{%- endif -%}
{{- m.content | trim + '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}"""
# the tools and the system prompt stand before the last question
MISTRAL = """{{- bos_token -}}
{%- set told = messages[0].content if messages[0].role == 'system' else '' -%}
{%- set turns = messages[1:] if told else messages -%}
{%- set ns = namespace(last=0) -%}
{%- for m in turns %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in turns -%}
{%- if m.role == 'user' -%}
{%- if tools and loop.index0 == ns.last %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif -%}
{{- '[INST] ' + (told + '\\n\\n' if told and loop.index0 == ns.last else '') + m.content + '[/INST]' -}}
{%- elif m.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in m.tool_calls -%}
{%- if call.id | length != 9 %}{{ raise_exception('ids must have nine characters') }}{% endif -%}
{{- {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson -}}
{{- ', ' if not loop.last else ']' -}}
{%- endfor -%}
{{- eos_token -}}
{%- elif m.role == 'tool' -%}
{{- '[TOOL_RESULTS] ' + {'content': m.content, 'call_id': m.tool_call_id} | tojson + '[/TOOL_RESULTS]' -}}
{%- else -%}
{{- ' ' + m.content + eos_token -}}
{%- endif -%}
{%- endfor -%}"""
PHI3 = """{%- for m in messages -%}
{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}"""
DEEPSEEK_CODER = """{{- bos_token -}}
{%- if messages[0].role != 'system' %}{{ 'You are an AI programming assistant.\\n' }}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n' }}
{%- else %}{{ '### Response:\\n' + m.content + '\\n<|EOT|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:' }}{% endif -%}"""
_DEEPSEEK = """{{- bos_token -}}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' and m.content is none -%}
{{- '<｜Assistant｜>' -}}
{%- for call in m.tool_calls -%}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '\\n' + call.function.arguments + '<｜tool▁call▁end｜>' -}}
{%- endfor -%}
{{- '<｜end▁of▁sentence｜>' -}}
{%- elif m.role == 'assistant' -%}
{{- '<｜Assistant｜>' if messages[loop.index0 - 1].role != 'tool' -}}
{{- CONTENT + '<｜end▁of▁sentence｜>' -}}
{%- elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<｜Assistant｜>OPENING' }}{% endif -%}"""
DEEPSEEK_V3 = _DEEPSEEK.replace("CONTENT", "m.content").replace("OPENING", "")
DEEPSEEK_R1 = _DEEPSEEK.replace("CONTENT", "m.content.split('</think>')[-1]").replace("OPENING", "<think>\\n")
ENDLESS = """{%- for m in messages -%}
{{- ('Q: ' if m.role == 'user' else 'A: ') + m.content + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'A:' }}{% endif -%}"""

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
_MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_DEEP = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁call▁begin｜>")


@dataclass(frozen=True)
class Family:
    """A chat template and the special tokens of its tokenizer: the first opens a text, the second ends one."""

    template: str
    specials: tuple[str, ...]
    turn_end: str
    add_bos: bool = False
    spaces: bool = False  # SentencePiece's way: spaces as ▁, one put before a text and after a special token
    strips: bool = False  # special tokens take the space after them

    @cached_property
    def tokenizer(self) -> "EngineTokenizer":
        return EngineTokenizer(self)


FAMILIES = {
    "smollm2": Family(SMOLLM2, (_IM[1], *_IM), "<|im_end|>"),
    "qwen2": Family(QWEN2, (_IM[0], *_IM), "<|im_end|>"),
    "qwen3": Family(QWEN3, (_IM[0], *_IM), "<|im_end|>"),
    "gemma2": Family(GEMMA2, _GEMMA, "<end_of_turn>", add_bos=True, spaces=True),
    "gemma3": Family(GEMMA3, _GEMMA, "<end_of_turn>", add_bos=True),
    "llama3": Family(LLAMA3, _LLAMA3, "<|eot_id|>", add_bos=True),
    "mistral": Family(MISTRAL, _MISTRAL, "</s>", add_bos=True, spaces=True),
    "phi3": Family(
        PHI3, ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|end|>", strips=True
    ),
    "deepseek-coder": Family(DEEPSEEK_CODER, (_DEEP[0], "<|EOT|>"), "<|EOT|>", add_bos=True),
    "deepseek-v3": Family(DEEPSEEK_V3, _DEEP, _DEEP[1], add_bos=True),
    "deepseek-r1": Family(DEEPSEEK_R1, _DEEP, _DEEP[1], add_bos=True),
    "endless": Family(ENDLESS, ("<s>", "</s>"), "</s>", add_bos=True),
}

_CORPUS = [
    "What colour is the sea? It is grey, and the old wall is white.\n\nThe answer is 42, or so they say.",
    '{"name": "weather", "arguments": {"city": "Graz", "days": 3}}\nassistant\nuser\n### Response:\n',
] * 3


class EngineTokenizer:
    """The surface of settle's tokenizers over one of `tokenizers`, with a family's special tokens."""

    pre = "test"

    def __init__(self, family: Family) -> None:
        self.chat_template, self.add_bos = family.template, family.add_bos
        self._engine = _spaced() if family.spaces else _byte_level()
        self._spaces = family.spaces
        specials = list(dict.fromkeys(family.specials))
        self._engine.add_special_tokens(
            [AddedToken(token, rstrip=family.strips, normalized=False) for token in specials]
        )
        self.vocab_size = self._engine.get_vocab_size()
        self.tokens = [self._engine.id_to_token(i) for i in range(self.vocab_size)]
        self.special_tokens = {token: self.tokens.index(token) for token in specials}
        self.token_types = [3 if token in self.special_tokens else 1 for token in self.tokens]
        self.token_bytes = [self._bytes(token) for token in self.tokens]
        self.byte_length = np.array([len(b) for b in self.token_bytes], np.int32)
        self.bos_id, self.eos_id = (self.special_tokens[token] for token in family.specials[:2])
        self.turn_end_id = self.special_tokens[family.turn_end]
        self.merges: list[str] = []
        self.dtype = np.uint16

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        assert specials
        return np.array(self._engine.encode(text, add_special_tokens=False).ids, self.dtype)

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")

    def _bytes(self, token: str) -> bytes:
        if token in self.special_tokens:
            return b""
        if self._spaces:
            if token.startswith("<0x"):
                return bytes([int(token[3:5], 16)])
            return token.replace("▁", " ").encode()
        values = {character: byte for byte, character in BYTE_CHARACTERS.items()}
        return bytes(values[character] for character in token)


def _byte_level() -> Tokenizer:
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet)
    engine.train_from_iterator(_CORPUS, trainer)
    return engine


def _spaced() -> Tokenizer:
    engine = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, show_progress=False, special_tokens=["<unk>", *every_byte])
    engine.train_from_iterator(_CORPUS, trainer)
    # the bytes are ordinary tokens from now on
    trained = engine.model
    plain = Tokenizer(trained)
    plain.normalizer = engine.normalizer
    return plain
