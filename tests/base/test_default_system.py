"""The system prompt that all rows share, as the default of a chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settle.base.chat_template import (
    ChatTemplate,
    TemplateFailure,
    default_system,
    with_default_system,
    without_default_system,
)
from settle.data.rows.templates import KNOWN

ASKING = [{"role": "user", "content": "Is it 1 < 2?"}]
PROMPT = "You sort \"tickets\" {{ x }} {% if %} %} #} \\n back\\slash \U0001f600 'q'\nSecond line.\tEnd"


def system(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": prompt}]


@pytest.mark.parametrize("name", KNOWN)
def test_a_conversation_without_a_system_prompt_gets_the_default(name: str) -> None:
    own = ChatTemplate(KNOWN[name])
    try:
        expected = own.render(system(PROMPT) + ASKING, add_generation_prompt=True)
        knows = "sort" in expected
    except TemplateFailure:
        knows = False
    if not knows:
        folded = [{"role": "user", "content": f"{PROMPT}\n\n{ASKING[0]['content']}"}]
        expected = own.render(folded, add_generation_prompt=True)
    template = ChatTemplate(with_default_system(KNOWN[name], PROMPT, knows))
    assert template.render(ASKING, add_generation_prompt=True) == expected
    assert template.render(system(PROMPT) + ASKING, add_generation_prompt=True) == expected
    other = template.render(system("Be brief.") + ASKING, add_generation_prompt=True)
    assert "Be brief." in other and "sort" not in other


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.booleans())
def test_the_default_is_read_back_and_replaced(prompt: str, knows: bool) -> None:
    template = with_default_system("{{ messages }}", "an earlier one", True)
    written = with_default_system(template, prompt, knows)
    assert default_system(written) == prompt and without_default_system(written) == "{{ messages }}"
    assert default_system("{{ messages }}") is None and default_system(None) is None
