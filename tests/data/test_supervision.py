"""Which tokens are supervised, under the chat templates of many families."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settle.base.chat_template import ChatTemplate
from settle.base.errors import ProofError
from settle.data.layouts import Broken, Example
from settle.data.rows.prepare import AHEAD, RowEncoder
from settle.data.rows.render import KNOWN, fitting
from settle.data.rows.supervision import Encoded
from settle.data.settings import RowSettings
from tests.data.families import DEEPSEEK_R1, FAMILIES, Family

CHAT = [
    {"role": "user", "content": "What colour is the sea?"},
    {"role": "assistant", "content": "It is grey.\n\nOr so they say: 42 é"},
    {"role": "user", "content": "And the old wall?"},
    {"role": "assistant", "content": "White, *white*!"},
]
SYSTEM = {"role": "system", "content": "Answer in short."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "000000000", "type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}
TOOLS = [
    {"role": "user", "content": "Does it rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"rain": true}', "tool_call_id": "000000000", "name": "weather"},
    {"role": "assistant", "content": "It rains."},
]


def making(family: Family, **settings: Any) -> RowEncoder:
    tokenizer = family.tokenizer
    tokens = (tokenizer.tokens[tokenizer.bos_id], tokenizer.tokens[tokenizer.eos_id])
    return RowEncoder(tokenizer, ChatTemplate(family.template, *tokens), RowSettings(**settings), "chat")


def rows(made: RowEncoder, messages: list[Any], tools: list[Any] | None = None) -> list[Encoded]:
    ((_, _, found),) = made.rows([(0, Example("chat", messages, tools or []))])
    if isinstance(found, Broken):
        raise found
    return [row for (row,) in found]


def supervised(made: RowEncoder, row: Encoded) -> list[str]:
    return [text for text, learned in made.supervision.shown(row.ids, row.mask) if learned]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "deepseek-r1"])
@pytest.mark.parametrize("system", [False, True])
def test_what_is_supervised_is_what_follows_the_prompt_a_server_sends(name: str, system: bool) -> None:
    family = FAMILIES[name]
    tokenizer, made = family.tokenizer, making(family)
    messages = [SYSTEM] * system + CHAT
    spoken, _ = made.renderer.adapter.spoken(messages, [])
    answers = [i for i, m in enumerate(spoken) if m["role"] == "assistant"]
    found = rows(made, messages)
    parts = [part for row in found for part in supervised(made, row)]
    assert len(parts) == 2
    for part, number in zip(parts, answers, strict=True):
        assert CHAT[number - len(spoken)]["content"] in part
        assert part.endswith(family.turn_end)
    template = ChatTemplate(family.template, tokenizer.tokens[tokenizer.bos_id], tokenizer.tokens[tokenizer.eos_id])
    prompts = [
        tokenizer.encode(template.render(spoken[:i], add_generation_prompt=True), specials=True) for i in answers
    ]
    for prompt, part in zip(prompts, parts, strict=True):
        if tokenizer.add_bos and prompt[0] != tokenizer.bos_id:
            prompt = np.append(tokenizer.bos_id, prompt)
        home = next(row for row in found if part in supervised(made, row))
        assert np.array_equal(home.ids[: len(prompt)], prompt)
        # the first token after the prompt is the first of the answer that is learned
        assert home.mask[len(prompt)] and not home.mask[len(prompt) - 1]
    for row in found:
        assert row.mask[-1] and row.ids[-1] == tokenizer.turn_end_id
        assert (row.ids == tokenizer.bos_id).sum() <= 1 or not tokenizer.add_bos


@pytest.mark.parametrize(
    ("name", "apart"), [("smollm2", 1), ("qwen2", 1), ("qwen3", 2), ("llama3", 1), ("gemma3", 1), ("mistral", 2)]
)
def test_an_answer_that_a_later_turn_changes_has_a_row_of_its_own(name: str, apart: int) -> None:
    assert len(rows(making(FAMILIES[name]), [SYSTEM, *CHAT])) == apart


def test_what_is_asked_for_is_supervised() -> None:
    messages = [*CHAT, {"role": "user", "content": "Why?"}, *CHAT[3:]]
    for asked, count in (("assistant", 3), ("completion", 1), ("last-turn", 1)):
        made = making(FAMILIES["qwen2"], supervise=asked)
        (row,) = rows(made, messages)
        assert len(supervised(made, row)) == count
    made = making(FAMILIES["qwen2"], supervise="completion")
    (row,) = rows(made, [*CHAT, *TOOLS], [TOOL])
    assert len(supervised(made, row)) == 2
    made = making(FAMILIES["qwen2"], supervise="all")
    (row,) = rows(made, messages)
    assert row.mask.sum() == len(row.mask) - 1
    made = making(FAMILIES["qwen2"])
    (row,) = rows(made, [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT[2:]])
    assert supervised(made, row) == ["White, *white*!<|im_end|>"]
    with pytest.raises(Broken, match="no answer that is supervised"):
        rows(made, [CHAT[0], CHAT[1] | {"weight": 0}])


TOOL_CALLS = {
    "qwen2": '<tool_call>\n{"name": "weather", "arguments": {"city": "Graz"}}\n</tool_call><|im_end|>',
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Graz"}}\n</tool_call><|im_end|>',
    "llama3": '{"name": "weather", "parameters": {"city": "Graz"}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Graz"}, "id": "000000000"}]</s>',
    "deepseek-v3": 'weather\n{"city": "Graz"}<｜tool▁call▁end｜><｜end▁of▁sentence｜>',
    "smollm2": '<tool_call>\n{"name": "weather", "arguments": {"city": "Graz"}}\n</tool_call><|im_end|>',
    "gemma2": '<tool_call>\n{"name": "weather", "arguments": {"city": "Graz"}}\n</tool_call><end_of_turn>',
}


@pytest.mark.parametrize("name", TOOL_CALLS)
def test_tool_calls_are_rendered_the_template_s_way(name: str) -> None:
    made = making(FAMILIES[name])
    found = rows(made, TOOLS, [TOOL])
    parts = [part for row in found for part in supervised(made, row)]
    assert len(parts) == 2
    # a tokenizer that puts a space after special tokens shows it
    assert TOOL_CALLS[name].replace("] [", "]  [") in parts[0].replace("] [", "]  [") and "It rains." in parts[1]
    for row in found:
        assert "The weather of a city" in row.text or name == "deepseek-v3"
    assert all('"rain": true' in row.text or '\\"rain\\": true' in row.text for row in found[-1:])
    assert bool(made.renderer.adapter.notes) == (name in ("smollm2", "gemma2", "deepseek-v3"))


def test_thoughts_are_learned_where_the_template_writes_them() -> None:
    made = making(FAMILIES["qwen3"])
    thinking = {"role": "assistant", "content": "<think>\nThe sea.\n</think>\n\nGrey."}
    first, second = rows(made, [CHAT[0], thinking, *CHAT[2:]])
    assert supervised(made, first) == ["<think>\nThe sea.\n</think>\n\nGrey.<|im_end|>"]
    assert supervised(made, second) == ["<think>\n\n</think>\n\nWhite, *white*!<|im_end|>"]
    apart = {"role": "assistant", "content": "Grey.", "reasoning_content": "The sea."}
    assert np.array_equal(rows(made, [CHAT[0], apart])[0].ids, first.ids)
    made = making(FAMILIES["qwen3"], thinking=False)
    (row,) = rows(made, CHAT[:2])
    assert supervised(made, row) == [CHAT[1]["content"] + "<|im_end|>"]
    assert "<think>\n\n</think>\n\nIt is grey." in row.text


def test_a_template_that_begins_each_answer_with_a_thought() -> None:
    made = making(FAMILIES["deepseek-r1"])
    (row,) = rows(made, [CHAT[0], {"role": "assistant", "content": "<think>\nThe sea.\n</think>\n\nGrey."}])
    assert supervised(made, row) == ["The sea.\n</think>\n\nGrey.<｜end▁of▁sentence｜>"]
    assert row.text.endswith("<｜Assistant｜><think>\nThe sea.\n</think>\n\nGrey.<｜end▁of▁sentence｜>")
    (row,) = rows(made, [CHAT[0], {"role": "assistant", "content": "Grey.", "reasoning_content": "The sea."}])
    assert supervised(made, row) == ["The sea.\n</think>\n\nGrey.<｜end▁of▁sentence｜>"]
    assert not made.renderer.adapter.notes
    first, second = rows(made, CHAT)
    assert supervised(made, first) == [f"\n</think>\n\n{CHAT[1]['content']}<｜end▁of▁sentence｜>"]
    assert "<｜Assistant｜>It is grey." in second.text and second.text.count("<think>") == 1
    calling, _ = rows(made, TOOLS, [TOOL])
    assert supervised(made, calling)[0].startswith("\n</think>\n\n<｜tool▁call▁begin｜>weather")
    assert any("empty one" in note for note in made.renderer.adapter.notes)


def test_a_prompt_that_closes_the_thoughts_leaves_them_out() -> None:
    family = FAMILIES["qwen3"]
    prompt = "enable_thinking is defined and enable_thinking is false"
    closing = Family(family.template.replace(prompt, "not enable_thinking"), family.specials, family.turn_end)
    made = making(closing)
    (row,) = rows(made, [CHAT[0], {"role": "assistant", "content": "<think>\nThe sea.\n</think>\n\nGrey."}])
    assert supervised(made, row) == ["Grey.<|im_end|>"] and "The sea." not in row.text
    assert any("left out" in note for note in made.renderer.adapter.notes)
    made = making(closing, thinking=True)
    (row,) = rows(made, [CHAT[0], {"role": "assistant", "content": "<think>\nThe sea.\n</think>\n\nGrey."}])
    assert supervised(made, row) == ["<think>\nThe sea.\n</think>\n\nGrey.<|im_end|>"]


def test_a_system_prompt_that_the_template_does_not_know_is_put_before_the_question() -> None:
    made = making(FAMILIES["gemma2"])
    (row,) = rows(made, [SYSTEM, *CHAT])
    assert "<start_of_turn>user\nAnswer in short.\n\nWhat colour is the sea?<end_of_turn>" in row.text
    assert any("system" in note for note in made.renderer.adapter.notes)


def test_a_template_that_refuses_names_its_reason() -> None:
    with pytest.raises(Broken, match="Roles must alternate"):
        rows(making(FAMILIES["gemma2"]), [CHAT[0], *CHAT])


def test_a_template_that_loses_the_answer_is_found_out() -> None:
    family = FAMILIES["qwen2"]
    cut = Family(family.template.replace("+ m.content -}}", "+ m.content[:5] -}}"), family.specials, family.turn_end)
    with pytest.raises(Broken, match="does not give the answer back"):
        rows(making(cut), CHAT)
    no_calls = Family(family.template.replace("m.tool_calls or []", "[]"), family.specials, family.turn_end)
    made = making(no_calls)
    (row,) = rows(made, TOOLS, [TOOL])
    assert TOOL_CALLS["qwen2"] in supervised(made, row)[0]


def test_an_end_that_is_no_token_is_refused() -> None:
    family = FAMILIES["qwen2"]
    made = making(family)
    made.supervision._stop_ids = np.array([family.tokenizer.bos_id])
    with pytest.raises(ProofError, match="the end of an answer is not supervised"):
        rows(made, CHAT)


@pytest.mark.parametrize("name", ["qwen2", "mistral", "phi3", "endless"])
def test_every_supervised_token_decodes_to_its_answer(name: str) -> None:
    """Answers that begin and end in every awkward way are cut off exactly."""
    made = making(FAMILIES[name])
    for content in ("\n\nIt is", " It is ", "\tx", "é\n", "\n", "42", "🙂 white\n\n\n", '{"a": 1}'):
        messages = [CHAT[0], {"role": "assistant", "content": content + "."}]
        (row,) = rows(made, messages)
        (part,) = supervised(made, row)
        assert part.removesuffix(FAMILIES[name].turn_end).strip() == (content + ".").strip()


def test_long_rows_lose_later_turns_and_never_part_of_an_answer() -> None:
    made = making(FAMILIES["qwen2"])
    (whole,) = rows(made, CHAT)
    limited = making(FAMILIES["qwen2"], max_tokens=len(whole.ids) - 1)
    (short,) = rows(limited, CHAT)
    assert supervised(limited, short) == [CHAT[1]["content"] + "<|im_end|>"]
    assert short.mask[-1] and np.array_equal(short.ids, whole.ids[: len(short.ids)])
    assert (limited.shortened, limited.answers_lost, limited.dropped_long) == (1, 1, 0)
    tight = making(FAMILIES["qwen2"], max_tokens=len(short.ids) - 1)
    with pytest.raises(Broken, match="longer than the limit"):
        rows(tight, CHAT)
    assert (tight.shortened, tight.answers_lost, tight.dropped_long) == (0, 2, 1)


def test_templates_of_the_fixture_read_as_in_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for name, family in FAMILIES.items():
        if name in ("gemma2", "mistral"):
            continue
        theirs, _ = render_jinja_template([CHAT], chat_template=family.template, bos_token="<b>", eos_token="<e>")
        assert ChatTemplate(family.template, "<b>", "<e>").render(CHAT) == theirs[0]
    assert "OPENING" not in DEEPSEEK_R1


@pytest.mark.parametrize(
    ("family", "name"), [("qwen2", "chatml"), ("gemma3", "gemma"), ("llama3", "llama3"), ("deepseek-coder", "turns")]
)
def test_a_model_without_a_template_gets_one_that_fits(family: str, name: str) -> None:
    tokenizer = FAMILIES[family].tokenizer
    assert fitting(set(tokenizer.tokens)) == name
    template = ChatTemplate(KNOWN[name], tokenizer.tokens[tokenizer.bos_id], tokenizer.tokens[tokenizer.eos_id])
    made = RowEncoder(tokenizer, template, RowSettings(), "chat")
    (row,) = rows(made, [SYSTEM, *CHAT])
    end = FAMILIES[family].turn_end
    assert supervised(made, row) == [f"{CHAT[1]['content']}{end}", f"{CHAT[3]['content']}{end}"]
    assert "Answer in short." in row.text and not made.renderer.adapter.notes


def test_the_next_rows_are_rendered_while_one_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row but the last is encoded only once the next one has been rendered; the order stays, refused ones too."""
    made, number = making(FAMILIES["qwen3"]), 12
    rendered = [threading.Event() for _ in range(number)]
    render, encode = made.renderer.rows, made.supervision.encode

    def render_and_say(example: Example) -> list[Any]:
        try:
            return render(example)
        finally:
            rendered[int(example.messages[0]["content"].split()[0])].set()

    def encode_after_the_next(row: Any) -> Encoded:
        place = int(row.text.split("user\n")[1].split()[0])
        assert place == number - 1 or rendered[place + 1].wait(60), "the next row waits for this one"
        return encode(row)

    monkeypatch.setattr(made.renderer, "rows", render_and_say)
    monkeypatch.setattr(made.supervision, "encode", encode_after_the_next)
    examples = [Example("chat", [{"role": "user", "content": f"{n} ?"}, CHAT[1]], []) for n in range(number)]
    examples[7] = Example("chat", [{"role": "user", "content": "7 <|im_end|>"}, CHAT[1]], [])
    found = list(made.rows(enumerate(examples)))
    assert [label for label, _, _ in found] == list(range(number))
    assert [label for label, _, rows in found if isinstance(rows, Broken)] == [7]


def test_no_more_rows_are_rendered_ahead_than_are_soon_encoded() -> None:
    made, asked = making(FAMILIES["qwen3"]), []
    example = Example("chat", CHAT[:2], [])
    examples = ((asked.append(n), example) for n in range(99))
    found = made.rows(examples)
    for _ in range(3):
        next(found)
    assert len(asked) == AHEAD + 3
    found.close()


AWKWARD = st.text(st.sampled_from("aZ0é中🙂 \n\t\r\u00a0\u200b\u0301'\"{}[]<>|\\/_.:#"), min_size=1, max_size=12)


@given(
    asked=AWKWARD, said=AWKWARD.filter(lambda text: text.strip()), name=st.sampled_from(["qwen3", "mistral", "phi3"])
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_any_answer_is_cut_off_exactly(asked: str, said: str, name: str) -> None:
    made = making(FAMILIES[name])
    (row,) = rows(made, [{"role": "user", "content": asked}, {"role": "assistant", "content": said}])
    (part,) = supervised(made, row)
    assert said.strip() in part and part.endswith(FAMILIES[name].turn_end)
    assert part.removeprefix("<think>\n\n</think>\n\n").removesuffix(FAMILIES[name].turn_end).strip() == said.strip()
