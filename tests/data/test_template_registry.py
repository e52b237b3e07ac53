"""Real chat templates: each renders here, in its fenced child, exactly as transformers renders it."""

from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from settle.base.chat_template import ChatTemplate, TemplateFailure

TEMPLATES = sorted((Path(__file__).parents[1] / "chat_templates").glob("*.jinja"))
BOS, EOS = "<s>", "</s>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
QUESTION = {"role": "user", "content": "How is the sea at Kærø today?\n  Grey?"}
TURNS = [QUESTION, {"role": "assistant", "content": "Grey."}, {"role": "user", "content": "And <b>tomorrow</b>?"}]
SYSTEM = {"role": "system", "content": "You answer in one word."}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("asks", [True, False], ids=["asks", "ends"])
def test_a_real_template_renders_as_in_transformers(path: Path, asks: bool) -> None:
    source = path.read_text(encoding="utf-8")
    rendered = 0
    for messages, tools in (([QUESTION], []), (TURNS, []), ([SYSTEM, *TURNS], []), ([QUESTION], [WEATHER])):
        try:
            expected = _in_transformers(source, messages, tools, asks)
        except (TemplateError, TypeError, AttributeError):  # the template refuses a system role, or such
            with pytest.raises(TemplateFailure):
                _here(source, messages, tools, asks)
            continue
        assert _here(source, messages, tools, asks) == expected
        rendered += 1
    assert rendered


def _here(source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], asks: bool) -> str:
    return ChatTemplate(source, BOS, EOS).render(messages, tools, add_generation_prompt=asks)


def _in_transformers(source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], asks: bool) -> str:
    rendered, _ = render_jinja_template(
        [messages], tools=tools or None, chat_template=source, add_generation_prompt=asks, bos_token=BOS, eos_token=EOS
    )
    return str(rendered[0])
