"""How turns are written: what a chat template puts around a question and behind an answer, and the known ways to."""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from settle.base.chat_template import ChatTemplate
from settle.data.rows.render import CHATML, GEMMA, LLAMA3, TURNS
from settle.formats import Metadata

QUESTION, ANSWER = "Which colour is it?", "It is green."


class Form(NamedTuple):
    """A way to write turns."""

    tokens: tuple[str, ...]  # that a vocabulary must have for it; none where its marks are plain words
    template: str


def _form(before: str, after: str, end: str, tokens: tuple[str, ...] = ()) -> Form:
    """Return a form by what stands before and after a question, and behind an answer ("": the end of a text)."""
    ended = _quoted(end) if end else "eos_token"
    template = (
        "{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
        f"{{{{- message.content + {ended} -}}}}"
        "{%- elif message.role == 'system' -%}{%- set ns.system = message.content + '\\n\\n' -%}{%- else -%}"
        f"{{{{- {_quoted(before)} + ns.system + message.content + {_quoted(after)} -}}}}{{%- set ns.system = '' -%}}"
        "{%- endif -%}{%- endfor -%}"
    )
    return Form(tokens, "{%- set ns = namespace(system='') -%}" + template)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'").replace("\n", "\\n") + "'"


# the families' published formats
FORMS: Mapping[str, Form] = {
    "chatml": Form(("<|im_start|>", "<|im_end|>"), CHATML),
    "gemma": Form(("<start_of_turn>", "<end_of_turn>"), GEMMA),
    "gemma-4": _form("<|turn>user\n", "<turn|>\n<|turn>model\n", "<turn|>\n", ("<|turn>", "<turn|>")),
    "llama-3": Form(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), LLAMA3),
    "llama-4": _form(
        "<|header_start|>user<|header_end|>\n\n",
        "<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "<|eot|>",
        ("<|header_start|>", "<|header_end|>", "<|eot|>"),
    ),
    "phi-3": _form("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>\n", ("<|user|>", "<|assistant|>", "<|end|>")),
    "glm": _form("<|user|>\n", "<|assistant|>\n", "", ("<|user|>", "<|assistant|>", "<sop>")),
    "granite": _form(
        "<|start_of_role|>user<|end_of_role|>",
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n",
        ("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "command-r": _form(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    "deepseek": _form("<｜User｜>", "<｜Assistant｜>", "", ("<｜User｜>", "<｜Assistant｜>")),
    "kimi": _form(
        "<|im_user|>user<|im_middle|>",
        "<|im_end|><|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>",
        ("<|im_user|>", "<|im_middle|>", "<|im_end|>"),
    ),
    "gpt-oss": _form(
        "<|start|>user<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
        ("<|start|>", "<|message|>", "<|return|>"),
    ),
    "exaone": _form("[|user|]", "\n[|assistant|]", "[|endofturn|]\n", ("[|endofturn|]",)),
    "apertus": _form(
        "<|user_start|>",
        "<|user_end|><|assistant_start|>",
        "<|assistant_end|>",
        ("<|user_start|>", "<|assistant_start|>", "<|assistant_end|>"),
    ),
    "seed": _form("<seed:bos>user\n", "<seed:eos><seed:bos>assistant\n", "<seed:eos>", ("<seed:bos>", "<seed:eos>")),
    "mistral": _form("[INST]", "[/INST]", "", ("[INST]", "[/INST]")),
    "llama-2": _form("[INST] ", " [/INST]", ""),
    "zephyr": _form("<|user|>\n", "\n<|assistant|>\n", ""),
    "vicuna": _form("USER: ", " ASSISTANT:", ""),
    "alpaca": _form("### Instruction:\n", "\n\n### Response:\n", ""),
    "turns": Form((), TURNS),
}


def fitting_forms(tokens: Collection[str]) -> list[str]:
    """Return the names of the forms whose tokens a vocabulary has; of those in plain words where it has none."""
    held = set(tokens)
    own = [name for name, form in FORMS.items() if form.tokens and held.issuperset(form.tokens)]
    return own or [name for name, form in FORMS.items() if not form.tokens]


def turn_end(metadata: Metadata, source: str) -> str:
    """Return what a chat template writes behind an answer, or the token that ends a text. Raises TemplateFailure."""
    template = compiled_template(metadata, source)
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    return template.render(turns).rpartition(ANSWER)[2] or special_token(metadata, "eos")


def rendered(metadata: Metadata, source: str, question: str, earlier: Sequence[tuple[str, str]] = ()) -> str:
    """Return a question by a chat template, ready for an answer. Raises TemplateFailure.

    earlier: questions and answers before it.
    """
    turns = [
        {"role": role, "content": text}
        for turn in earlier
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    turns.append({"role": "user", "content": question})
    return compiled_template(metadata, source).render(turns, add_generation_prompt=True)


def compiled_template(metadata: Metadata, source: str) -> ChatTemplate:
    """Compile a chat template with the special tokens of a file. Raises TemplateFailure."""
    return _compiled(source, special_token(metadata, "bos"), special_token(metadata, "eos"))


def special_token(metadata: Metadata, name: str) -> str:
    """Return the text of a special token, such as "eos"; "" where the file has none."""
    number, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata.get("tokenizer.ggml.tokens")
    return str(tokens[number]) if isinstance(number, int) and isinstance(tokens, list) else ""


@lru_cache(64)
def _compiled(source: str, bos: str, eos: str) -> ChatTemplate:
    return ChatTemplate(source, bos, eos)
