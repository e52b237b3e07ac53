"""The Modelfile: what it serves, and a template in Go's language that renders what the Jinja template renders."""

import copy
import re

import pytest

from settle.base.chat_template import render
from settle.formats import ModelContents
from settle.formats.ollama import PROBES, Ollama, modelfile, turns

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + "
    "'\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role + ': \"' + m.content + '\"\\n\t' }}{% endfor %}{{ 'assistant: \"' if add_generation_prompt }}"
)
FOLDED = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{{ '[INST] ' + (system + '\n' if loop.first and system) "
    "+ m.content + ' [/INST]' if m.role == 'user' else m.content }}{% endfor %}"
)
COUNTING = "{% for m in messages %}{{ loop.index ~ m.role + ': ' + m.content + '\n' }}{% endfor %}"


def with_(tokenizer, template, **changes):
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def go(template, messages):
    """Just enough of Go's text/template to run what we write: quoted constants, range, if, eq, ne, and."""
    tokens = re.findall(r'\{\{ ("(?:[^"\\]|\\.)*"|.*?) \}\}|(.+?)(?=\{\{|$)', template, re.S)
    assert not any(plain for _, plain in tokens), "every literal is quoted, so that no space is lost"
    out, actions = "", [action for action, _ in tokens]
    start, last = actions.index("range $i, $_ := .Messages"), len(actions) - 1 - actions[::-1].index("end")
    unquoted = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\"": '"', r"\\": "\\"}

    def constant(action):
        return re.sub(r"\\.", lambda m: unquoted[m[0]], action[1:-1])

    for number, message in enumerate(messages):
        open_, chosen = [True], False  # whether each block we are in is taken; whether a branch was
        for action in actions[start + 1 : last]:
            if action.startswith("if and"):
                open_.append(number == 0 and message["role"] != "system")
            elif action.startswith(("if eq", "else if eq")):
                if action.startswith("else"):
                    open_.pop()
                open_.append(not chosen and message["role"] == re.search('"(.*)"', action)[1])
                chosen = chosen or open_[-1]
            elif action == "end":
                open_.pop()
            elif all(open_):
                out += message["content"] if action == ".Content" else constant(action)
    return out + "".join(constant(action) for action in actions[last + 1 :])


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, WITH_BOS, NO_SYSTEM])
def test_the_template_in_go_renders_the_same(tiny, template):
    tokenizer = with_(tiny.tokenizer, template, add_bos=template == WITH_BOS)
    written = turns(tokenizer)
    assert written is not None
    bos = tokenizer.tokens[tokenizer.bos_id]
    for messages in PROBES:
        if template == NO_SYSTEM and messages[0]["role"] == "system":
            continue
        expected = render(template, messages, add_generation_prompt=True, bos_token=bos, eos_token=bos)
        assert go(written, messages) == expected.removeprefix(bos if template == WITH_BOS else "")


@pytest.mark.parametrize("template", [FOLDED, COUNTING, "{{ messages[0].content }}", "{{ raise_exception('no') }}"])
def test_a_template_that_is_no_sequence_of_turns_is_left_to_ollama(tiny, template):
    tokenizer = with_(tiny.tokenizer, template)
    assert turns(tokenizer) is None
    assert "TEMPLATE" not in modelfile("./x.gguf", tokenizer, 64)


def test_what_is_in_the_folder(tiny, tmp_path):
    form = Ollama()
    contents = ModelContents(tiny.part, tiny.weights, tiny.tokenizer, {"name": "notes", "base": True})
    form.write(tmp_path / "notes", contents)
    assert sorted(p.name for p in (tmp_path / "notes").iterdir()) == ["Modelfile", "notes.gguf"]
    text = (tmp_path / "notes" / "Modelfile").read_text()
    assert text.startswith("FROM ./notes.gguf\nPARAMETER num_ctx 512\n")
    assert 'TEMPLATE """{{ .Prompt }}"""' in text and 'stop "<|im_end|>"' in text
    # what `ollama create` takes: ADAPTER is refused from 0.34.1 on, DRAFT is for MTP and DFlash drafts only
    assert {line.split()[0] for line in text.splitlines()} <= {"FROM", "PARAMETER", "SYSTEM", "TEMPLATE", "LICENSE"}
