"""Real chat templates: each renders here, in its fenced child, exactly as transformers renders it."""

import random
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from settle.base.chat_template import ChatTemplate, TemplateFailure
from settle.data.layouts import Example
from settle.data.rows.render import Renderer

TEMPLATES = sorted((Path(__file__).parents[1] / "chat_templates").glob("**/*.jinja"))
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


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_200_conversations_render_as_in_transformers(path: Path) -> None:
    """With tools and their results, thoughts, and thinking switched on and off."""
    source = path.read_text(encoding="utf-8")
    draw, rendered = random.Random(path.stem), 0
    for number in range(200):
        messages, tools, asks = _conversation(draw), [WEATHER] * draw.randint(0, 2), number % 2 == 0
        thinks = draw.choice([{}, {"enable_thinking": True}, {"enable_thinking": False}, {"thinking": True}])
        try:
            expected = _in_transformers(source, messages, tools, asks, **thinks)
        except (TemplateError, TypeError, AttributeError):  # the template knows no such order of turns
            with pytest.raises(TemplateFailure):
                _here(source, messages, tools, asks, **thinks)
            continue
        assert _here(source, messages, tools, asks, **thinks) == expected
        rendered += 1
    assert rendered >= 20


def test_an_answer_of_gpt_oss_is_all_of_its_messages() -> None:
    """Thought and answer are supervised together, and each turn is one as it was written, though later ones drop it."""
    template = ChatTemplate((TEMPLATES[0].parent / "gpt-oss.jinja").read_text(encoding="utf-8"), BOS, "<|return|>")
    controls = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Kærø"}}}
    turns = [
        {"role": "assistant", "content": "Grey.", "reasoning_content": "They ask."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": "Rain.", "reasoning_content": "It says so."},
    ]
    result = {"role": "tool", "name": "weather", "content": "rain"}
    example = Example("chat", [QUESTION, turns[0], QUESTION, turns[1], result, turns[2]], [WEATHER])
    rows = Renderer(template, ["<|call|>", "<|end|>", "<|return|>"], controls, "all", {}).rows(example)
    said = [row.text[a.start : a.end] for row in rows for a in row.answers if a.supervised and not row.unended]
    thought, final = (
        "<|channel|>analysis<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
    )
    assert said == [
        (thought + final).format("They ask.", "Grey."),
        ' to=functions.weather<|channel|>commentary json<|message|>{"town": "Kærø"}<|call|>',
        (thought + final).format("It says so.", "Rain."),
    ]


def _conversation(draw: random.Random) -> list[dict[str, Any]]:
    """Return one to three questions with their answers, some of which think or call tools first."""
    messages = [SYSTEM] * draw.randint(0, 1)
    turns = draw.randint(1, 3)
    for turn in range(turns):
        messages.append({"role": "user", "content": draw.choice(_TEXTS)})
        thoughts = {"reasoning_content": draw.choice(_TEXTS)} if draw.random() < 0.3 else {}
        if draw.random() < 0.4:
            names = [f"call{draw.randrange(10**5):05}" for _ in range(draw.randint(1, 2))]
            function = {"name": "weather", "arguments": {"town": draw.choice(_TEXTS), "days": draw.randint(1, 9)}}
            calls = [{"id": name, "type": "function", "function": function} for name in names]
            messages.append({"role": "assistant", "content": draw.choice(["", "Let me see."]), "tool_calls": calls})
            messages[-1] |= thoughts
            for name in names:
                result = {"role": "tool", "name": "weather", "tool_call_id": name, "content": draw.choice(_TEXTS)}
                messages.append(result)
        if turn + 1 < turns or draw.random() < 0.5:
            thought = draw.choice(["", "<think>\nGrey?\n</think>\n\n"])
            messages.append({"role": "assistant", "content": thought + draw.choice(_TEXTS), **thoughts})
    return messages


_TEXTS = ["Grey.", 'How is it at Kærø?\n  "Grey"?', "<b>海</b> & 😀\t", '{"sky": "grey", "wind": [3, null]}', " 42\n\n"]


def _here(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], asks: bool, **arguments: bool
) -> str:
    return ChatTemplate(source, BOS, EOS).render(messages, tools, add_generation_prompt=asks, **arguments)


def _in_transformers(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], asks: bool, **arguments: bool
) -> str:
    given = {"add_generation_prompt": asks, "bos_token": BOS, "eos_token": EOS, **arguments}
    rendered, _ = render_jinja_template([messages], tools=tools or None, chat_template=source, **given)
    return str(rendered[0])
