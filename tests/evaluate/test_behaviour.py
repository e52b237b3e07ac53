"""What the gate compares, with a live model and a llama.cpp that say what the test wants."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from settle.base.errors import GateError
from settle.evaluate.gate import behaviour, diagnose
from settle.evaluate.gate.behaviour import (
    Difference,
    Effort,
    _aligned,
    _endings,
    compare_distributions,
    compare_greedy,
    compare_ids,
    compare_lists,
    compare_opening,
    compare_prompts,
    compare_template,
    first_difference,
    lookalikes,
)
from settle.evaluate.gate.diagnose import LARGEST, damaged_rows
from settle.evaluate.gate.gate import PROSE, Merge, _bars, _pieces, _require_merge, _sequences, in_fp32, require
from settle.formats.gguf import rounded
from settle.formats.gguf.types import Bars, ggml_type

BARS = Bars(kl=0.5, logit_error=0.5, tie=0.1)


class Letters:
    """A tokenizer whose ids are letters: a is 0."""

    tokens = [chr(97 + i) for i in range(26)]
    token_types, merges = [1] * 26, ["a b"]
    bos_id, eos_id, turn_end_id, add_bos = 1, 25, 24, True
    special_tokens = {"<|im_end|>": 23, "<s>": 22}
    chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        return np.array([ord(c) - 97 for c in text if "a" <= c <= "z"], int)

    def decode(self, ids: Any) -> str:
        return "".join(self.tokens[i] for i in ids)


def letters(**changes: Any) -> Any:
    tokenizer = Letters()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def live(monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    """The live model's log-probabilities: `rows` of the ids and each position."""

    def logprobs(model: Any, ids: list[int], at: Any) -> torch.Tensor:
        return torch.tensor(np.array([rows(ids, position) for position in at]))

    monkeypatch.setattr(behaviour, "logprobs", logprobs)


def sure_of(token: int, gap: float = 5.0, second: int = 0) -> np.ndarray:
    logits = np.zeros(26)
    logits[token], logits[second] = 2 * gap, gap if second != token else 2 * gap
    return logits - np.log(np.exp(logits).sum())


def greedy(monkeypatch: pytest.MonkeyPatch, ours: str, theirs: str, prompt: str = "ab", **more: Any) -> Any:
    """Both continue `prompt`, the live model by `ours`, whatever came before; a gap of 0.05 is a near-tie."""
    wanted = prompt + ours
    gap, error = more.pop("gap", 5.0), more.pop("error", 0.0)

    def rows(ids: list[int], position: int) -> np.ndarray:
        came = ids[position + 1] if position + 1 < len(ids) else 25
        return sure_of(ord(wanted[position + 1]) - 97, gap, came)

    live(monkeypatch, rows)
    reply = [ord(c) - 97 for c in theirs]
    engine: Any = SimpleNamespace(context=100, greedy=lambda prompt, number: reply[:number])
    return compare_greedy(None, letters(), engine, [[0, 1, 2, 3]], BARS, Effort(num_greedy=4, **more), error)  # type: ignore[arg-type]


def test_equal_continuations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert greedy(monkeypatch, "cdef", "cdef") == {
        "greedy_prompts": 1, "greedy_tokens": 4, "greedy_tokens_equal": 4, "greedy_near_ties": 0,
        "answers": [{"prompt": [0, 1], "answer": [2, 3, 4, 5]}],
    }  # fmt: skip


def test_the_first_other_token_fails_unless_it_is_a_near_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Difference, match="differ at token 2 of prompt 0 .*: 'e' here, 'x' in llama.cpp, 5.000 nats"):
        greedy(monkeypatch, "cdef", "cdxf")
    figures = greedy(monkeypatch, "cdef", "cdxf", gap=0.05)
    assert (figures["greedy_tokens"], figures["greedy_tokens_equal"], figures["greedy_near_ties"]) == (3, 2, 1)


def test_a_near_tie_is_as_wide_as_the_file_s_errors_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four standard deviations of the difference of two log-probabilities."""
    assert greedy(monkeypatch, "cdef", "cdxf", gap=0.5, error=0.1)["greedy_near_ties"] == 1
    with pytest.raises(Difference, match=r"0.500 nats apart \(bar 0.45\)"):
        greedy(monkeypatch, "cdef", "cdxf", gap=0.5, error=0.08)


@pytest.mark.parametrize(("ours", "theirs"), [("cdz", "cd"), ("cdx", "cd"), ("cdz", "cdz"), ("cdy", "cd")])
def test_either_end_of_an_answer_is_right(monkeypatch: pytest.MonkeyPatch, ours: str, theirs: str) -> None:
    """z ends a text, y a turn, x is what llama.cpp takes for an end; it may leave that token out."""
    assert greedy(monkeypatch, ours, theirs)["greedy_tokens_equal"] == 3


def test_an_answer_that_ends_where_the_model_goes_on_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Difference, match="at token 2 .*'e' here, 'x' in llama.cpp"):
        greedy(monkeypatch, "cdef", "cd")


def test_a_near_tie_with_any_of_the_ends_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies 0.08 nats behind, the other ends 0.16; up to 0.1 is a near-tie."""
    figures = greedy(monkeypatch, "cdef", "cd", gap=0.08)
    assert (figures["greedy_tokens_equal"], figures["greedy_near_ties"]) == (2, 1)


def test_prompts_are_half_of_the_text_and_fit_into_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def reply(prompt: list[int], number: int) -> list[int]:
        asked.append((len(prompt), number))
        return [0] * number

    live(monkeypatch, lambda ids, position: sure_of(0))
    texts = [[0] * 3, [0] * 300, [0]]
    for context, expected in ((1000, [(1, 24), (64, 24), (1, 24)]), (40, [(1, 20), (20, 20), (1, 20)])):
        asked.clear()
        engine: Any = SimpleNamespace(context=context, greedy=reply)
        compare_greedy(None, letters(), engine, texts, BARS, Effort())  # type: ignore[arg-type]
        assert asked == expected
    figures = compare_greedy(None, letters(), engine, texts * 3, BARS, Effort(num_prompts=3))  # type: ignore[arg-type]
    assert asked[3:] == [(1, 20)] * 3 and figures["greedy_prompts"] == 3


def test_positions_are_spread_over_each_window_with_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def rows(ids: list[int], position: int) -> np.ndarray:
        seen.append(position)
        return sure_of(3)

    def likely(ids: list[int], top: int | None) -> dict[int, float]:
        assert top is None and len(ids) == seen[len(told)] + 1
        told.append(len(ids))
        return dict(enumerate(sure_of(3)))

    told: list[int] = []
    live(monkeypatch, rows)
    engine: Any = SimpleNamespace(num_vocab=26, next_token_logprobs=likely)
    monkeypatch.setattr(behaviour, "logprobs", lambda m, ids, at: torch.tensor(np.array([rows(ids, p) for p in at])))
    figures = compare_distributions(None, engine, [[0] * 100, [0] * 3], BARS, Effort(num_logprobs=26 * 10))  # type: ignore[arg-type]
    assert seen == [0, 25, 50, 74, 99, 0, 1, 2] and figures["positions"] == 8
    assert figures["kl"] == figures["kl_max"] == figures["logit_error"] == 0 and figures["top_token_equal"] == 1
    assert figures["likely_error"] == 0


def test_the_error_of_likely_tokens_is_that_of_the_twenty_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.log(np.linspace(1.0, 4.0, 26) / np.linspace(1.0, 4.0, 26).sum())
    moved = row + np.where(np.arange(26) < 6, 0.1, np.where(np.arange(26) % 2, 0.02, -0.02))  # six are unlikely
    engine: Any = SimpleNamespace(num_vocab=26, next_token_logprobs=lambda ids, top: dict(enumerate(moved)))
    monkeypatch.setattr(behaviour, "logprobs", lambda m, ids, at: torch.tensor(np.array([row for _ in at])))
    figures = compare_distributions(None, engine, [[0] * 9], BARS, Effort())  # type: ignore[arg-type]
    assert figures["likely_error"] == pytest.approx(float(np.sqrt(0.02**2 + (0.6 / 26) ** 2)), rel=1e-3)


@pytest.mark.parametrize(
    ("bars", "passes"), [(Bars(9, 9, 1), True), (Bars(1e-9, 9, 1), False), (Bars(9, 1e-9, 1), False)]
)
def test_both_bars_must_hold_and_the_worst_place_is_named(
    monkeypatch: pytest.MonkeyPatch, bars: Bars, passes: bool
) -> None:
    live(monkeypatch, lambda ids, position: sure_of(3))
    other = {2: sure_of(4)}
    engine: Any = SimpleNamespace(
        num_vocab=26, next_token_logprobs=lambda ids, top: dict(enumerate(other.get(len(ids) - 1, sure_of(3))))
    )

    def compare() -> dict[str, Any]:
        return compare_distributions(None, engine, [[0, 1, 2]] * 2, bars, Effort())  # type: ignore[arg-type]

    if passes:
        figures = compare()
        assert figures["top_token_equal"] == pytest.approx(4 / 6)
        assert figures["kl_max"] == pytest.approx(3 * figures["kl"])
        ours, theirs = sure_of(3), sure_of(4)
        gap = ours - theirs
        error = np.sqrt(np.mean((gap - gap.mean()) ** 2) / 3 / np.var(ours))
        assert figures["logit_error"] == pytest.approx(error)
        return
    with pytest.raises(Difference, match="the most at token 2 of held-out sequence [01]") as caught:
        compare()
    assert caught.value.figures["positions"] == 6


def test_the_rest_of_a_large_vocabulary_is_one_outcome() -> None:
    row = np.log([0.5, 0.25, 0.125, 0.125])
    ours, file, rest = _aligned(row, {0: float(np.log(0.5)), 2: float(np.log(0.25))})
    assert ours.tolist() == [row[0], row[2]] and file.tolist() == [np.log(0.5), np.log(0.25)]
    assert rest == pytest.approx(0.375 * np.log(0.375 / 0.25))
    assert _aligned(row, dict(enumerate([-100.0, -1.0, -2.0, -3.0])))[1][0] == behaviour.UNDERFLOW


@pytest.mark.parametrize(("one", "other", "at"), [("abc", "abd", 2), ("ab", "abc", 2), ("abc", "ab", 2), ("", "", 0)])
def test_the_first_difference_of_two_lists(one: str, other: str, at: int) -> None:
    assert first_difference(one, other) == at


def test_lookalikes_hold_each_special_token_whole_and_broken() -> None:
    texts = lookalikes(letters(special_tokens={"<s>": 1}))
    assert texts == ["<s>", "x<s>y", " <s> ", "<s><s>", "<s", "s>", "<S>"]
    assert len(lookalikes(letters(special_tokens={f"<{i}>": i for i in range(99)}))) == 7 * 40


def test_every_end_that_llama_cpp_knows_ends_an_answer() -> None:
    assert _endings(letters()) == [23, 24, 25]


def file_of(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    lists = {"tokens": tokenizer.tokens, "token_type": tokenizer.token_types, "merges": tokenizer.merges}
    return {f"tokenizer.ggml.{key}": value for key, value in {**lists, "eos_token_id": 25, **changes}.items()}


def test_every_list_of_the_vocabulary_is_compared() -> None:
    tokenizer = letters()
    compare_lists(tokenizer, file_of(tokenizer))
    for key, value, says in (
        ("tokens", ["a", "x", *tokenizer.tokens[2:]], r"tokens differ at 1: 'b' here, \['x'\]"),
        ("token_type", [1] * 25, r"token_type differ at 25: 1 here, \[\]"),
        ("merges", None, "merges differ at 0"),
        ("eos_token_id", 24, "eos_token_id is 25 here, 24 in the file"),
    ):
        with pytest.raises(Difference, match=says):
            compare_lists(tokenizer, file_of(tokenizer, **{key: value}))


def test_texts_are_opened_as_the_model_expects() -> None:
    def engine(*ids: int) -> Any:
        return SimpleNamespace(tokenize=lambda text, opening: list(ids))

    compare_opening(letters(), engine(1))
    compare_opening(letters(add_bos=False), engine())
    compare_opening(letters(bos_id=None), engine())
    with pytest.raises(Difference, match="the opening token is missing: llama.cpp puts no 'b' before"):
        compare_opening(letters(), engine())
    with pytest.raises(Difference, match=r"opened with the ids \[1\] here, \[2\] in"):
        compare_opening(letters(), engine(2))
    with pytest.raises(Difference, match=r"opened with the ids \[\] here, \[1\] in"):
        compare_opening(letters(add_bos=False), engine(1))


def test_ids_of_every_text_are_compared() -> None:
    engine: Any = SimpleNamespace(tokenize=lambda text, special: Letters().encode(text.replace("q", "r")).tolist())
    assert compare_ids(letters(), engine, ["abc", "d"]) == 2
    with pytest.raises(Difference, match=r"differ at 1: \[16, 2\] here, \[17, 2\] in llama.cpp, for the text 'aqc'"):
        compare_ids(letters(), engine, ["abc", "aqc"])


def prompts(render: Any, conversations: Any = behaviour.CONVERSATIONS, **changes: Any) -> int:
    engine: Any = SimpleNamespace(render=render, tokenize=lambda text, special: Letters().encode(text).tolist())
    return compare_prompts(letters(**changes), engine, conversations)


def test_rendered_prompts_are_compared_byte_for_byte() -> None:
    """An opening token that llama.cpp adds by itself is written by no side."""

    def rendered(messages: Any) -> str:
        return "".join(f"[{m['content']}]" for m in messages)

    assert prompts(rendered) == 4 == prompts(lambda m: "b" + rendered(m))
    assert prompts(lambda m: "b" + rendered(m), add_bos=False) == 4 and prompts(rendered, chat_template="") == 0
    with pytest.raises(Difference, match="rendered prompts differ at character 0"):
        prompts(rendered, add_bos=False)
    with pytest.raises(Difference, match="rendered prompts differ at character 7: '' here, '!' in llama.cpp"):
        prompts(lambda m: rendered(m) + "!")
    strict = "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}[{{ messages[0].content }}]"
    assert prompts(rendered, chat_template=strict) == 1
    with pytest.raises(Difference, match="refuses every conversation"):
        prompts(rendered, chat_template="{{ raise_exception('no') }}")


@pytest.mark.parametrize(
    "kept",
    [
        lambda m: m[:3], lambda m: m[:5], lambda m: m[:8], lambda m: m[-7:], lambda m: m[-8:],
        lambda m: [{"content": turn["content"][:200]} for turn in m],
        lambda m: [{"content": turn["content"][:8000]} for turn in m],
    ],
)  # fmt: skip
def test_turns_and_characters_that_a_template_drops_are_seen(kept: Any) -> None:
    with pytest.raises(Difference, match="rendered prompts differ.* for a conversation of 9 turns: the chat template"):
        prompts(lambda m: "".join(f"[{turn['content']}]" for turn in kept(m)))


def test_the_text_of_the_template_is_compared() -> None:
    compare_template(letters(chat_template="abc"), {"tokenizer.chat_template": "abc"})
    compare_template(letters(chat_template=""), {})
    for there, at in (("abd", 2), ("ab", 2), ("abcd", 3), (None, 0)):
        with pytest.raises(Difference, match=f"text of the chat template differs at character {at}: "):
            compare_template(letters(chat_template="abc"), {"tokenizer.chat_template": there} if there else {})


def test_pieces_are_cut_and_spread() -> None:
    assert _pieces(["a" * 900, "b"], 9) == ["a" * 400, "a" * 400, "a" * 100, "b"]
    assert _pieces(["a" * 900, "b"], 2) == ["a" * 400, "a" * 100]


def test_sequences_are_the_full_ones_or_the_longer_half() -> None:
    full = _sequences(letters(add_bos=False), ["a" * 25, "b"], 10)
    assert all(len(ids) == 10 for ids in full) and full[0] == [0] * 10
    of_prose = sum(len(Letters().encode(text[:640])) // 10 for text in PROSE)
    assert len(full) == 2 + of_prose
    opened = _sequences(letters(), ["a" * 18], 10)
    assert opened[0] == [1] + [0] * 9 and len(opened[1]) == 10
    few = _sequences(letters(add_bos=False), ["abcde", "a"], 10_000)
    assert [len(ids) for ids in few] == sorted((len(Letters().encode(text)) for text in PROSE), reverse=True)[:2]
    many = _sequences(letters(add_bos=False), ["ab" * 5] * 300, 10)
    assert sum(ids == [0, 1] * 5 for ids in many) == 200


def gguf(number: int, *kinds: str) -> Any:
    tensors = {str(i): SimpleNamespace(dtype=kind) for i, kind in enumerate(kinds)}
    return SimpleNamespace(metadata={"tokenizer.ggml.tokens": ["x"] * number}, tensors=tensors)


def test_a_file_is_held_to_the_bars_of_its_type() -> None:
    few, many = gguf(5, "F16"), gguf(6, "F16")
    effort = Effort(most_likely=5)
    assert _bars(few, "q4_0", False, None, effort) == ggml_type("q4_0").bars
    assert _bars(many, "q4_0", False, None, effort) == ggml_type("q4_0").large_bars
    assert _bars(few, "q4_0", True, None, effort) == ggml_type("f16").bars  # an adapter over floats
    assert _bars(gguf(5, "F16", "Q4_K"), "f16", True, None, effort) == ggml_type("q8_0").bars
    merge = Merge({}, "Q4_1", limit=1e-5)
    assert _bars(few, "q4_0", False, merge, effort).kl == 1e-5
    assert _bars(few, "q4_0", False, Merge({}, "F16", limit=1e-5), effort) == ggml_type("q4_0").bars
    assert _bars(few, "q4_0", False, Merge({}, "Q4_1", limit=9.0), effort) == ggml_type("q4_0").bars


def merged(kl: float | None, kept: float, dtype: str = "q4_0") -> dict[str, Any]:
    return {
        "passed": False, "first_difference": "d", "cause": "c", "dtype": dtype, "adapter_kept": kept,
        "bars": {"kl": 0.02}, "merge": {"base_type": "Q4_0", "limit": 0.02, "kl": kl},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kl", "kept", "dtype", "is_rounding"),
    [
        (0.01, 0.3, "q4_0", True),  # swallowed
        (0.01, 0.3, "f16", False), (0.01, 0.02, "q4_0", False), (0.01, 0.5, "q4_0", False),
        (0.03, 0.5, "q4_0", True), (0.02, 0.5, "q4_0", False), (0.03, 0.01, "q4_0", False),  # costs too much
        (None, 0.9, "q4_0", False),
    ],
)  # fmt: skip
def test_what_a_merge_did_not_survive_is_said_where_it_is_rounding(
    kl: float | None, kept: float, dtype: str, is_rounding: bool
) -> None:
    if not is_rounding:
        _require_merge(merged(kl, kept, dtype))
        return
    with pytest.raises(GateError, match=f"writing it as {dtype} costs {kl} nats per token") as caught:
        _require_merge(merged(kl, kept, dtype))
    assert "--dtype f16" in caught.value.fix


def test_a_gate_says_its_cause_once() -> None:
    failed = {"passed": False, "first_difference": "d", "cause": "c"}
    require(failed | {"passed": True}, Path("x.gguf"))
    for cause, says in (("c", r"x.gguf does not behave like it: d. The cause: c$"), ("d", "it: d$"), (None, "it: d$")):
        with pytest.raises(GateError) as caught:
            require(failed | {"cause": cause}, Path("x.gguf"), "it")
        assert re.search(says, caught.value.what)


def test_the_live_model_is_compared_in_fp32_and_is_as_it_was() -> None:
    model: Any = SimpleNamespace(compute_dtype=torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for small, threads in ((True, 1), (False, 2)):
            with in_fp32(model, small):
                assert model.compute_dtype == torch.float32 and torch.get_num_threads() == threads
            assert model.compute_dtype == torch.bfloat16 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_row_is_damaged_from_what_its_type_does_not_round(is_own: bool) -> None:
    wanted = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    there = rounded(wanted, "Q4_0").copy()
    assert damaged_rows(there, wanted, "Q4_0", is_own).size == 0
    there[2] = 0
    there[4] = np.nan
    assert damaged_rows(there, wanted, "Q4_0", is_own).tolist() == [2, 4] and LARGEST < 1
    near = rounded(wanted, "Q4_0").copy()
    near[1] += 0.6 * (near[1] - wanted[1])  # beside the steps of the quantizer by less than its own error
    near[3] += 1.5 * (near[3] - wanted[3])
    assert damaged_rows(near, wanted, "Q4_0", is_own).tolist() == ([3] if is_own else [])


def test_vectors_and_many_rows_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.ones(5, np.float32)
    other = vector.copy()
    other[3] = 1.01
    assert (
        damaged_rows(other, vector, "F32", True).tolist() == [3] and not damaged_rows(vector, vector, "F32", True).size
    )

    monkeypatch.setattr(diagnose, "CHUNK", 8)  # pieces of two rows
    wanted = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    there = wanted.copy()
    there[[1, 4, 6]] *= 2
    assert damaged_rows(there, wanted, "F32", False).tolist() == [1, 4, 6]
