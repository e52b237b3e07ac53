"""Chat templates run within limits, and mean what they mean in transformers."""

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import settle.base.chat_template as chat_template
from settle.base.chat_template import (
    ChatTemplate,
    TemplateFailure,
    TemplateGrammar,
    TemplateRunaway,
    complaint,
    default_system,
    render,
    with_default_system,
    without_default_system,
)
from settle.base.line_child import ChildEnded, FencedChild, Limits
from settle.data.rows.render import KNOWN
from tests.base.bombs import COMPILED, INVENTED, REVIEW

MESSAGES = [{"role": "user", "content": "12% of {a: 1000000}? "}, {"role": "assistant", "content": "é <b>"}]
HOSTILE = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "steps",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}": "steps|2 s|30 s",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}": "recursion",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "characters",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}": "characters",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = [n.x, n.x]|join %}{% endfor %}": "characters",
    "{% set n = namespace(x=9) %}{% for i in range(50) %}{% set n.x %}{{n.x}}{{n.x}}{% endset %}{% endfor %}": "ch",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}": "writes more",
    "{{ 'a' * 1000000000 }}": "repeats",
    "{{ 'a'.ljust(10000000000) }}": "pads",
    "{{ '%1000000000d' % 3 }}": "pads",
    "{{ '{:1000000000}'.format(3) }}": "pads",
    "{{ 'a'|center(1000000000) }}": "pads",
    "{{ 7 ** 99999 }}": "number",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{{ namespace(_x=1) }}": "private",
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ nothing.here }}": "undefined",
}


@pytest.mark.parametrize("source", HOSTILE)
def test_a_template_that_raises_or_runs_on_is_stopped(source: str) -> None:
    with pytest.raises(TemplateFailure, match=HOSTILE[source]):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize("source", ["{% for %}", "{{ a b }}", "{% break %}", "x" * (1 << 19), "{{ " + "(" * 5000])
def test_grammar(source: str) -> None:
    with pytest.raises(TemplateGrammar):
        ChatTemplate(source)


@pytest.fixture(scope="module")
def short_limits():
    """A fifth of a second of processor time, so that the bombs that hang end sooner."""
    before = chat_template.LIMITS
    chat_template.LIMITS = Limits(cpu=0.2)
    yield
    chat_template.LIMITS = before


BOMBS = {
    **REVIEW,
    **{f"{k} (invented)": v for k, v in INVENTED.items()},
    **{f"{k} (compiled)": v for k, v in COMPILED.items()},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_held(short_limits, name: str) -> None:
    """It ends, with a bounded text or an error, and the next template is rendered."""
    before = psutil.Process().memory_info().rss
    try:
        assert len(ChatTemplate(BOMBS[name]).render(MESSAGES, None, True)) <= 1 << 24
    except TemplateFailure as e:
        assert len(e.what) < 500
    assert psutil.Process().memory_info().rss - before < 256 << 20
    assert render("{{ messages[0].role }}", MESSAGES, False) == "user"


def test_bombs_are_told_apart_from_refusals(short_limits) -> None:
    with pytest.raises(TemplateRunaway, match="0.2 s of processor time"):
        render(REVIEW["int square"], MESSAGES, False)
    with pytest.raises(TemplateRunaway, match="1024 MiB"):
        render(REVIEW["width of a star"], MESSAGES, False)
    with pytest.raises(TemplateRunaway):
        ChatTemplate(COMPILED["title"])


def test_reading_a_template_runs_nothing() -> None:
    assert complaint(COMPILED["title"]) is None and complaint("{% for %}") is None
    assert "long" in (complaint("x" * (1 << 19)) or "") and "no text" in (complaint(5) or "")


def test_beginnings_of_a_conversation() -> None:
    """Also more of them than one answer of the child holds."""
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}{{ '!' if add_generation_prompt }}")
    messages = [{"role": "user", "content": str(n)} for n in range(40)]
    cuts = [(n, bool(n % 2)) for n in range(41)]
    wanted = ["".join(map(str, range(n))) + "!" * (n % 2) for n in range(41)]
    assert template.render_cuts(messages, cuts) == wanted
    assert template.render([{"content": "\ud800 \U0001f600"}]) == "\ud800 \U0001f600"
    with pytest.raises(TemplateFailure, match="JSON"):
        template.render([{"content": {1, 2}}])


def test_a_child_that_is_late_or_gone() -> None:
    """The clock ends it where no other limit does; the next request gets another process."""
    child = FencedChild("settle.base.chat_template.render_child", Limits(wall=0.5, cpu=100))
    request = {"source": "{{ 1 }}", "tokens": {}, "now": None, "messages": [], "tools": None, "arguments": {}}
    assert child.ask(request | {"cuts": [[0, False]]}) == [["1"], None]
    process = child._child._process
    assert process is not None
    with pytest.raises(ChildEnded, match="0 s"):
        child.ask(request | {"source": REVIEW["int square"], "cuts": [[0, False]]})
    assert process.returncode is not None
    assert child.ask(request | {"cuts": []}) == [[], None]
    child.close()


SOURCES = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role ~ ': ' ~ m.content|trim }}"
    "{% if not loop.last %}\n{% endif %}{% endfor %}{{ {'a<': 'é'}|tojson }}{{ {'b': [1]}|tojson(indent=2) }}",
    "{{ bos_token }}{% for m in messages if m.role == 'user' %}{{ m['content'].split('%')[0] }}{% else %}0{% endfor %}"
    "{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}{{ messages[1:]|length }}{{ dict(a=1) }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}{% for i in range(5) %}{% if i == 2 %}{% break %}"
    "{% endif %}{{ i }}{% endfor %}{% if tools %}t{% endif %}{% if tools is none %}none{% endif %}{{ '%d' % 3 }}",
    "{%- set text %}{{ messages[0].content }}{% endset %}{{ text|upper }}{{ messages|map(attribute='role')|join(',') }}"
    "{{ messages[0].content.startswith('12') }}{{ eos_token * 2 }}{% if thinking is defined %}!{% endif %}",
]


@pytest.mark.parametrize("source", SOURCES)
def test_it_means_what_it_means_in_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (theirs,), _ = render_jinja_template([MESSAGES], chat_template=source, **tokens)
    assert render(source, MESSAGES, False, **tokens) == theirs


# --- the system prompt that all rows share ---

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
