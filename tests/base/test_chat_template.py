"""Chat templates run within limits, and mean what they mean in transformers."""

import pytest

from settle.base.chat_template import ChatTemplate, TemplateFailure, complaint, render

MESSAGES = [{"role": "user", "content": "12% of {a: 1000000}? "}, {"role": "assistant", "content": "é <b>"}]
HOSTILE = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "steps",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}": "steps|10 s",
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
    assert complaint(source)
    with pytest.raises(TemplateFailure):
        ChatTemplate(source)


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
