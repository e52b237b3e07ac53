"""What a comparison says of given scores, and the small decisions that lead to them."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.statistics import Interval, PairedTest
from settle.data.layouts import Example
from settle.evaluate.compare import candidate
from settle.evaluate.compare.candidate import Answer, Model, Reading
from settle.evaluate.compare.cases import PIECE, TEXT_BLOCKS, asking, case, cases, text_pieces
from settle.evaluate.compare.compare import (
    LONGEST_ANSWER,
    SHORTEST_ANSWER,
    CompareOptions,
    Comparison,
    compare,
    longest_answer,
    most_changed,
)
from settle.evaluate.compare.forgetting import (
    INSTRUCTIONS,
    OPENINGS,
    TEXTS,
    TOKENS,
    Familiar,
    Forgetting,
    forgetting,
    from_texts,
    generated,
    losses,
)
from settle.evaluate.compare.sample_size import judgement
from settle.library.reference import ModelRef
from settle.model.source import Source
from tests.records import into


def test(base: float, tuned: float, ends: tuple[float, float], p: float, families: int = 40) -> PairedTest:
    return PairedTest(base, tuned, Interval(tuned - base, *ends), p, 50, 20, 5, families, p)


test.__test__ = False  # type: ignore[attr-defined]
CLEAR, OPEN = test(0.25, 0.75, (0.4, 0.6), 0.0004), test(0.25, 0.3, (-0.1, 0.2), 0.3)
LOST = Forgetting(
    test(2.0, 2.2, (0.1, 0.3), 0.001), test(0.0, 0.15, (0.12, 0.2), 0.001), 1536, "written by base itself"
)
WHOLE = Comparison(
    "base", "tuned", "exact match", True, CLEAR, beside={"token F1": OPEN}, forgot=LOST, instructions=OPEN,
    cut=(1, 2), unasked=3, shortened=["the time had room for 50 of 60 rows"], judged_before=2,
)  # fmt: skip


@pytest.mark.parametrize(("name", "shown"), [("tuned", ("base", "tuned")), ("base", ("base", "base (tuned)"))])
def test_two_models_of_one_name_are_told_apart(
    name: str, shown: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    @contextlib.contextmanager
    def served(path: Path, name: str, adapter: Path | None) -> Iterator[str]:
        opened.append(name)
        yield name

    monkeypatch.setattr(candidate, "FileModel", SimpleNamespace(open=served))
    base, tuned = (ModelRef(n, "model", Source(Path(f), "gguf", n)) for n, f in (("base", "a.gguf"), (name, "b.gguf")))
    with candidate.both_in_llamacpp(base, tuned) as both:
        assert both == shown and tuple(opened) == shown


def test_a_headline_says_the_verdict_by_how_much_and_how_surely() -> None:
    assert WHOLE.headline == (
        "better than base: exact match 25.0 % → 75.0 % on 50 rows, +50.0 points (95 %: +40.0 to +60.0), p < 0.001"
    )
    loss = replace(WHOLE, measure="loss", is_share=False, score=OPEN)
    assert loss.headline == (
        "no different from base: loss 0.250 → 0.300 on 50 rows, +0.050 (95 %: -0.100 to +0.200), p = 0.300; up to "
        "0.200 better or 0.100 worse is not ruled out; about 870 more rows would show as much as was measured"
    )
    same = replace(WHOLE, score=OPEN).headline
    assert same.startswith("no different from base: exact match 25.0 % → 30.0 %")
    assert same.endswith(
        "; up to 20 points better or 10 points worse is not ruled out; about 870 more rows would show 5 points"
    )
    short = replace(OPEN, families=6, is_share=True, difference=Interval(0.17, -0.29, 0.54))
    assert replace(WHOLE, score=short).headline == (
        "too few rows to tell (6) whether it is better than base: exact match 25.0 % → 30.0 % on 50 rows, +17.0 points "
        "(95 %: -29.0 to +54.0), p = 0.300; up to 54 points better or 29 points worse is not ruled out; about 1,700 "
        "more rows would show 10 points"
    )
    few = replace(WHOLE, score=replace(test(0.2, 0.7, (0.1, 0.75), 0.03), adjusted_p=0.06))
    assert few.headline.endswith(
        "+50.0 points (95 %: +10.0 to +75.0), p = 0.030; too few rows differ to rule out chance, which shows as much "
        "with p = 0.03, 0.06 beside the other claims: a verdict takes 0.05 or less; up to 75 points better is not "
        "ruled out; about 4,300 more rows would show 5 points"
    )
    assert replace(WHOLE, margin=test(0.0, 0.5, (0.4, 0.6), 0.001)).headline.endswith(
        "; reward margin +0.500 (95 %: +0.400 to +0.600)"
    )


def test_every_score_has_its_row() -> None:
    shown = replace(WHOLE, margin=test(0.0, 0.5, (0.4, 0.6), 0.001)).rows()
    assert shown == [
        ["exact match", "25.0 %", "75.0 %", "+50.0", "+40.0 to +60.0", "better"],
        ["reward margin", "0.000", "0.500", "+0.500", "+0.400 to +0.600", "better"],
        ["token F1", "25.0 %", "30.0 %", "+5.0", "-10.0 to +20.0", "no different"],
        ["instructions followed", "25.0 %", "30.0 %", "+5.0", "-10.0 to +20.0", "no different"],
        ["loss on familiar text", "2.000", "2.200", "+0.200", "+0.100 to +0.300", ""],
        ["KL from the base", "", "0.150", "", "+0.120 to +0.200", ""],
    ]
    assert len(Comparison("base", "tuned", "exact match", True, CLEAR).rows()) == 1
    unseen = replace(WHOLE, score=OPEN, beside={"token F1": CLEAR})
    assert [row[-1] for row in unseen.rows()[:3]] == ["no different", "", ""], "only the deciding score is judged"


def test_notes_say_what_a_reader_should_know() -> None:
    assert WHOLE.notes() == [
        "the time had room for 50 of 60 rows",
        "the 50 rows are 40 families of rows that are alike, resampled whole",
        "exact match decides, which was chosen before any model answered; the other scores are judged only where it "
        "shows a difference, and are corrected together (Holm)",
        "2 other runs were judged on the same rows: the best of several is partly luck, so judge the one that you keep "
        "on fresh rows, with `settle eval --rows`",
        "forgot some: on 1536 tokens written by base itself, the loss rose by +0.200 nats per token, KL 0.150",
        "answers stopped for their length: 1 of base, 2 of tuned",
        "3 rows were too long to ask, and left out",
    ]
    plain = Comparison("base", "tuned", "exact match", True, replace(CLEAR, families=50))
    assert plain.notes() == []
    assert replace(plain, unasked=1, judged_before=1).notes()[1] == "1 row was too long to ask, and left out"
    assert replace(plain, judged_before=1).notes()[0].startswith("1 other run was judged")
    assert replace(plain, cut=(0, 1)).notes() == ["answers stopped for their length: 0 of base, 1 of tuned"]
    for families, says in ((5, "5 independent rows are too few for any verdict: give 6"), (6, "the 50 rows are 6 fam")):
        assert replace(plain, score=replace(CLEAR, families=families)).notes()[0].startswith(says)


def test_a_card_holds_the_headline_the_table_and_the_notes() -> None:
    lines = WHOLE.card_lines()
    assert lines[0] == f"**B{WHOLE.headline[1:]}.**" and lines[2].startswith("| | base | tuned |")
    assert lines[4] == "| exact match | 25.0 % | 75.0 % | +50.0 | +40.0 to +60.0 | better |"
    assert lines[-2] == "- 3 rows were too long to ask, and left out." and lines[-1] == ""


@pytest.mark.parametrize(
    ("score", "margin", "verdict"),
    [
        (CLEAR, test(0.0, -0.5, (-0.6, -0.4), 0.001), "better"),
        (OPEN, test(0.0, 0.5, (0.4, 0.6), 0.001), "better"),
        (OPEN, test(0.0, -0.5, (-0.6, -0.4), 0.001), "no different"),  # the two contradict each other
        (test(0.3, 0.3, (-0.1, 0.1), 1.0), test(0.0, -0.5, (-0.6, -0.4), 0.001), "worse"),
    ],
)
def test_a_margin_decides_where_the_score_does_not(score: PairedTest, margin: PairedTest, verdict: str) -> None:
    assert replace(WHOLE, score=score, margin=margin).verdict == verdict


def test_all_claims_are_corrected_and_stay_where_they_were() -> None:
    tests = [test(0.0, n, (n - 1.0, n + 1.0), 0.01 * n) for n in (1, 2, 3, 4, 5)]
    claims = replace(
        WHOLE, score=tests[0], margin=tests[1], beside={"a": tests[2], "b": tests[3]}, instructions=tests[4]
    )
    done = claims.corrected()
    assert done.margin is not None and done.instructions is not None
    found = [done.score, done.margin, *done.beside.values(), done.instructions]
    assert [one.tuned for one in found] == [1, 2, 3, 4, 5] and list(done.beside) == ["a", "b"]
    assert [one.adjusted_p for one in found] == pytest.approx([0.02, 0.02, 0.09, 0.09, 0.09])
    few = replace(WHOLE, instructions=None).corrected()
    assert few.instructions is None and few.margin is None and few.forgot is LOST


def test_json_holds_every_figure() -> None:
    told = WHOLE.to_json()
    assert told["cut"] == {"base": 1, "tuned": 2} and told["unasked"] == 3 and told["judged_before"] == 2
    assert told["shortened"] == ["the time had room for 50 of 60 rows"] and "margin" not in told
    assert told["forgetting"] == LOST.to_json() and set(told["beside"]) == {"token F1"}  # type: ignore[call-overload]
    assert "margin" in replace(WHOLE, margin=OPEN).to_json()
    assert Comparison("base", "tuned", "exact match", True, CLEAR).to_json()["instructions"] is None


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ((0.005, 0.01), "next to nothing"), ((0.02, 0.1), "little"), ((0.2, 0.5), "some"), ((0.6, 0.9), "much"),
        ((0.05, 0.6), "little to much"),
    ],
)  # fmt: skip
def test_how_much_was_forgotten_in_words(ends: tuple[float, float], says: str) -> None:
    assert replace(LOST, kl=test(0.0, 0.1, ends, 0.001)).degree == says
    assert replace(LOST, kl=replace(test(0.0, 0.1, ends, 0.001), wins=0)).degree == "next to nothing"


def test_pieces_of_one_text_are_one_family_and_of_few_texts_a_stretch() -> None:
    many = text_pieces(["a" * (2 * PIECE + 5), "b" * PIECE, " \n"] + ["c"] * 6, [0, 1, 2, 3, 4, 5, 6, 7, 7])
    assert [len(piece) for piece, _ in many[:4]] == [PIECE, PIECE, 5, PIECE]
    assert [family for _, family in many] == [0, 0, 0, 1, 2, 3, 4, 5, 6, 6]
    few = text_pieces(["a" * (40 * PIECE)], [0])
    assert len(few) == 40 and [family for _, family in few] == [n // 2 for n in range(40)]
    short = text_pieces(["a" * PIECE * 3, "b" * PIECE], [0, 1])
    assert [family for _, family in short] == [0, 1, 2, 3] and len({f for _, f in few}) == TEXT_BLOCKS
    blank = text_pieces(["a" * PIECE + " " * PIECE + "b"], [0])
    assert [piece for piece, _ in blank] == ["a" * PIECE, "b"]


class Words(Model):
    """A model of words: an id a word, opened by 0; every token as likely as `logprob` says; answers are given."""

    def __init__(self, logprob: float, answer: str = "", name: str = "words", chats: bool = False) -> None:
        self.name, self.chats, self.context, self.together = name, chats, 1000, 3
        self.logprob, self.answer, self.read_at_once, self.asked = logprob, answer, [0] * 0, [0] * 0

    def tokenize(self, text: str) -> list[int]:
        return [0, *(1 + len(word) for word in text.split())]

    def prompt(self, case: Any) -> list[int]:
        return self.tokenize(self.text_prompt(case))

    def answers(self, cases: Any, max_tokens: int, on_progress: Any, temperature: float = 0.0) -> list[Answer]:
        self.asked.append(max_tokens)
        self.temperature = temperature
        on_progress(len(cases))
        return [Answer(self.answer) for _ in cases]

    def read(self, texts: Any, begin: Any) -> list[Reading]:
        self.read_at_once.append(len(texts))
        spread = np.log(np.array([0.5, 0.25, 0.25]) if self.logprob > -1 else np.array([0.25, 0.5, 0.25]))
        return [
            Reading(np.full(len(text) - first, self.logprob), lambda i: spread)
            for text, first in zip(texts, begin, strict=True)
        ]


@pytest.mark.parametrize(
    ("words", "tokens"), [(1, SHORTEST_ANSWER), (99, 150), (10_000, LONGEST_ANSWER)]
)  # fmt: skip
def test_an_answer_may_be_half_as_long_again_as_nearly_all_that_are_wanted(words: int, tokens: int) -> None:
    wanted = [replace(asking("?"), reference=" ".join(["w"] * words))] * 20
    assert longest_answer(Words(-1.0), [*wanted, replace(asking("?"), reference="w " * 5000)]) == tokens
    assert longest_answer(Words(-1.0), wanted) == tokens


def test_losses_are_bits_per_byte() -> None:
    reader, heard = Words(-np.log(2)), [0] * 0
    assert losses(reader, ["aa bb", "cc", "é", "dd ee ff"], heard.append) == pytest.approx([2 / 5, 1 / 2, 1 / 2, 3 / 8])
    assert reader.read_at_once == [3, 1] and heard == [3, 4]


def test_what_was_forgotten_is_a_mean_over_texts() -> None:
    text = Familiar([[0, 1, 1], [0, 1]], [1, 1], "written by base itself")
    heard = [0] * 0
    found = forgetting(Words(-0.5), Words(-2.0), text, heard.append)
    assert found.loss.base == 0.5 and found.loss.tuned == 2.0 and found.tokens == 3
    assert found.kl.difference.value == pytest.approx(0.25 * np.log(2)) and heard[-1] == 2
    assert found.to_json()["texts"] == 2 and found.to_json()["tokens"] == 3


def test_the_base_writes_what_it_knows() -> None:
    writer, heard = Words(-1.0, "three more words"), [0] * 0
    text = generated(writer, heard.append)
    assert text.texts == [[0, 6, 5, 6]] * TEXTS and text.begin == [1] * TEXTS and heard == [TEXTS]
    assert writer.asked == [TOKENS] and writer.temperature == 1.0
    chats = generated(Words(-1.0, "yes", chats=True), heard.append)
    assert len(chats.texts) == len(OPENINGS) and chats.begin[0] == 1 + len(OPENINGS[0].split())
    late = Words(-1.0, "yes")
    assert len(generated(late, heard.append, until=time.monotonic() - 1).texts) == 8 and heard[-1] == TEXTS
    assert len(generated(late, heard.append, until=time.monotonic() + 1e6).texts) == TEXTS
    with pytest.raises(DataError, match="writes nothing by itself"):
        generated(Words(-1.0, ""), heard.append)


def test_familiar_text_is_cut_and_spread() -> None:
    text = from_texts(Words(-1.0), ["w " * (2 * TOKENS * 60 - 1), ""], "notes")
    assert len(text.texts) == TEXTS and {len(ids) for ids in text.texts} == {2 * TOKENS} and text.wrote == "from notes"
    assert len(from_texts(Words(-1.0), ["a b", "c"], "notes").texts) == 2
    with pytest.raises(DataError, match="no text in notes"):
        from_texts(Words(-1.0), [""], "notes")


def chat(question: str, answer: str) -> Example:
    return Example("chat", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def test_questions_have_the_number_of_their_row() -> None:
    turns = [{"role": "system", "content": "s"}, *chat("q", "a").messages]
    call = {"function": {"name": "f", "arguments": {"é": 1}, "id": 3}}
    calls = Example("chat", [chat("q", "").messages[0], {"role": "assistant", "content": "", "tool_calls": [call] * 2}])
    better = Example("preference", chat("q", "").messages[:1], chosen=[{"role": "assistant", "content": "good"}])
    found = cases([chat("q", "a"), Example("text", text="t"), Example("chat", turns), calls, better])
    assert [one.number for one in found] == [1, 3, 4, 5] and [one.prompt for one in found] == ["q", None, "q", "q"]
    line = '{"name": "f", "arguments": {"é": 1}}'
    assert [one.reference for one in found] == ["a", "a", f"{line}\n{line}", "good"] and found[0].question == "q"
    assert case(Example("text", text="t"), 1) is None and asking("x", 4).number == 4


def test_what_changed_most_comes_first() -> None:
    questions = [replace(asking(str(n)), number=n) for n in range(6)]
    base, tuned = ["same", "a", "b", "c", "alike one", "alpha"], [" same", "A", "B", "C", "alike two", "zzzzz"]
    before, after = [0.0, 0.0, 0.5, 1.0, 0.5, 0.5], [1.0, 1.0, 0.75, 0.0, 0.5, 0.5]
    found = most_changed(questions, base, tuned, before, after)
    assert [change.number for change in found] == [1, 3, 2, 5, 4] and [c.gain for c in found[:3]] == [1.0, -1.0, 0.25]
    assert len(most_changed(questions, base, tuned, before, after, most=2)) == 2


ROWS = [chat(f"question {number}", "yes") for number in range(20)]


def compared(base: Words, tuned: Words, rows: list[Example] = ROWS, **options: Any) -> Comparison:
    return compare(base, tuned, rows, Events(), CompareOptions(**options))


def test_rows_instructions_and_what_was_forgotten_are_all_asked_of_both() -> None:
    base, tuned = Words(-0.5, "no", "base", chats=True), Words(-2.0, "yes", "tuned", chats=True)
    found = compared(base, tuned)
    assert found.verdict == "better" and found.score.rows == 20 and found.shortened == [] and found.unasked == 0
    assert found.instructions is not None and found.instructions.rows == len(INSTRUCTIONS) and found.forgot is not None
    assert [change.gain for change in found.changed] == [1.0] * 10 and found.cut == (0, 0) and 0 <= found.seconds < 60
    only = compared(base, tuned, only_rows=True, limit=8)
    assert only.instructions is None and only.forgot is None and only.score.rows == 8
    plain = compared(Words(-0.5, "no", "base"), Words(-2.0, "yes", "tuned"))
    assert plain.instructions is None and plain.forgot is not None


class Varied(Words):
    """Answers `right` to the questions of some numbers, and `no` to all others."""

    def answers(self, cases: Any, max_tokens: int, on_progress: Any, temperature: float = 0.0) -> list[Answer]:
        return [Answer(self.answer if int(c.question.split()[1]) in self.right else "no") for c in cases]

    right: frozenset[int] = frozenset()


def test_rows_of_one_family_count_once_in_the_comparison() -> None:
    """Forty rows that answer ten prompts: what is right, is right of all four."""
    rows = [
        chat(f"question {number} {'abcdefghij'[number] * 9}", f"answer {n} yes")
        for number in range(10)
        for n in range(4)
    ]
    base, tuned = Varied(-0.5, "no", "base"), Varied(-2.0, "yes", "tuned")
    tuned.right = frozenset(range(5))
    answered = [replace(row, messages=[row.messages[0], chat("", "yes").messages[1]]) for row in rows]
    found = compared(base, tuned, answered, only_rows=True)
    assert (found.score.rows, found.score.wins, found.score.families) == (40, 20, 10)
    assert found.verdict == "too few rows to tell" and found.score.p_value == 2 / 2**5


def test_without_time_only_rows_are_asked_and_the_rest_is_said() -> None:
    base, tuned = Words(-0.5, "no", "base", chats=True), Words(-2.0, "yes", "tuned", chats=True)
    found = compared(base, tuned, seconds=0.0)
    assert found.instructions is None and found.forgot is None and found.score.rows == 8
    assert list(found.shortened) == [
        "the time had room for 8 of 20 rows",
        "there was no time to see whether instructions are still followed",
        "there was no time to see what was forgotten",
    ]


def test_a_verdict_that_is_known_is_only_added_to() -> None:
    base, tuned = Words(-0.5, "no", "base"), Words(-2.0, "yes", "tuned")
    known = Comparison("base", "tuned", "preference accuracy", True, replace(CLEAR, p_value=0.01))
    found = compare(base, tuned, ROWS, Events(), judged=known)
    assert found.measure == "preference accuracy" and found.forgot is not None and not any(base.asked[1:])


def test_plain_text_is_scored_by_minus_its_bits() -> None:
    heard: list[dict[str, Any]] = []
    text = [Example("text", text=letter * 3 + " " + letter * 4) for letter in "abcdefgh"]
    base, tuned = Words(-np.log(2), name="base"), Words(-np.log(4), name="tuned")
    found = compare(base, tuned, text, Events(listeners=[into(heard)]), CompareOptions(only_rows=True))
    assert (found.score.base, found.score.tuned) == pytest.approx((-2 / 8, -4 / 8))
    assert found.measure == "minus bits per byte" and not found.is_share and heard[-1]["what"] == "tuned reads"
    with pytest.raises(DataError, match="nothing to compare on"):
        compared(base, tuned, [Example("text", text=" ")])


def test_what_rows_can_show_is_said_before_any_model_answers() -> None:
    rows = [chat(f"{'abcdefghijklmnopqrst'[n] * 30} {n}", f"yes {n}") for n in range(20)]
    found = judgement(rows, None, 200)
    assert found is not None and (found.measure, found.rows, found.families) == ("exact match", 20, 20)
    assert found.visible is not None and 0.3 < found.visible < 0.5
    assert found.sentence == (
        "20 rows judge the result, by exact match: a difference of 47 points or more would be seen in four cases of "
        "five"
    )
    few = judgement(rows[:4], "f1", 200)
    assert few is not None and few.visible is None
    assert few.sentence == (
        "4 rows judge the result, by token F1: too few to show any difference, which takes 6 or more that are not alike"
    )
    alike = judgement([row for row in rows for _ in range(2)], None, 200)
    assert alike is not None and alike.sentence.startswith("40 rows in 20 families of like ones judge the result")
    assert judgement([Example("text", text="t")], None, 200) is None
