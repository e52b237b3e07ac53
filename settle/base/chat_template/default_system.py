"""A default system prompt inside of a chat template: the one that every row a model was tuned on had.

It is written before the template, as Jinja, so every program that renders the template answers in the same way, and
every format that carries the template carries it. A conversation that has a system prompt of its own keeps that.
"""

import re

_HEAD = "{#- the model was tuned with this system prompt -#}{%- set default_system_prompt = "
# the default is one more message, as if it had been sent
_AS_MESSAGE = (
    " %}{%- if messages and messages[0]['role'] not in ['system', 'developer'] %}"
    "{%- set messages = [{'role': 'system', 'content': default_system_prompt}] + messages %}{%- endif -%}"
)
# where a template knows no system prompt, it is put before the first question, as in training
_BEFORE_QUESTION = (
    " %}{%- if messages and messages[0]['role'] == 'system' %}"
    "{%- set default_system_prompt = messages[0]['content'] %}{%- set messages = messages[1:] %}{%- endif %}"
    "{%- if messages and messages[0]['role'] == 'user' and messages[0]['content'] is string %}"
    "{%- set messages = [{'role': 'user', 'content': default_system_prompt + '\\n\\n' + messages[0]['content']}]"
    " + messages[1:] %}{%- endif -%}"
)
_WRITTEN = re.compile(
    re.escape(_HEAD) + r'"((?:[^"\\]|\\.)*)"(?:' + re.escape(_AS_MESSAGE) + "|" + re.escape(_BEFORE_QUESTION) + ")"
)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CHARACTERS = {written: char for char, written in _ESCAPES.items()}


def with_default_system(template: str, prompt: str, knows_system: bool) -> str:
    """Put a default system prompt into a template, in place of an earlier one.

    knows_system: it renders system prompts.
    """
    escaped = "".join(_ESCAPES.get(char, char) for char in prompt)
    rest = _AS_MESSAGE if knows_system else _BEFORE_QUESTION
    return f'{_HEAD}"{escaped}"{rest}{without_default_system(template)}'


def default_system(template: str | None) -> str | None:
    """Return the default that a template carries; None when it has none of ours."""
    written = _WRITTEN.match(template or "")
    return re.sub(r"\\.", lambda escape: _CHARACTERS[escape[0]], written[1]) if written else None


def without_default_system(template: str) -> str:
    """Return the template as it was without the default."""
    written = _WRITTEN.match(template)
    return template[written.end() :] if written else template
