"""Chat templates for models that come without one, chosen by the special tokens that their vocabulary has.

A model that knows the tokens of a turn was meant to be talked to in that way; one that knows none takes turns in plain
words, each answer ended by its end-of-text token. Roles: system, user, assistant.
"""

from collections.abc import Collection

# how tools are told, called and answered: between the tags of Hermes and Qwen, which most servers read
TOOLS_BEFORE = "# Tools\n\nThese functions may be called, each described in JSON:\n<tools>\n"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call one, answer with its name and its arguments:\n"
    '<tool_call>\n{"name": "the function\'s name", "arguments": {}}\n</tool_call>'
)


def _quoted(text: str) -> str:
    """A text as a template writes it."""
    return "'" + text.replace("'", "\\'").replace("\n", "\\n") + "'"


CHATML = (
    "{%- if tools -%}"
    "{{- '<|im_start|>system\\n' -}}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif -%}"
    f"{{{{- {_quoted(TOOLS_BEFORE)} -}}}}"
    "{%- for tool in tools -%}{{- ('' if loop.first else '\\n') + (tool | tojson) -}}{%- endfor -%}"
    f"{{{{- {_quoted(TOOLS_AFTER)} + '<|im_end|>\\n' -}}}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + (message.content or '') -}}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{- '' if loop.first and not message.content else '\\n' -}}"
    '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}"
    "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif -%}"
    "{%- elif not (tools and loop.first and message.role == 'system') -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"
)
GEMMA = (
    "{{- bos_token -}}"
    "{%- set told = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- for message in (messages[1:] if told else messages) -%}"
    "{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' -}}"
    "{{- (told if loop.first else '') + message.content | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}"
)
TURNS = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{- '### Assistant:\\n' + message.content + eos_token + '\\n\\n' -}}"
    "{%- else -%}"
    "{{- '### ' + message.role | capitalize + ':\\n' + message.content + '\\n\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif -%}"
)
KNOWN = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "turns": TURNS}
_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def fitting(tokens: Collection[str]) -> str:
    """The name of the template for a model whose vocabulary has `tokens`."""
    return next((name for name, needed in _TOKENS.items() if all(t in tokens for t in needed)), "turns")
