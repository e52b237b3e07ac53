"""Where blocks are cut, with words for tokens."""

import pytest

from settle.documents.blocks import Block, Place
from settle.retrieve.index.chunkers import _fill_passages
from settle.retrieve.index.chunkers._fill_passages import (
    LINE,
    SENTENCE,
    BlockPiece,
    Filler,
    _halves,
    _joined,
    _together,
    cut,
    cut_at,
    weights,
    whole,
)


def count(texts):
    return [len(text.split()) for text in texts]


def block(text, kind="text", line=None, **more):
    return Block(kind, text, Place(line=line), lined=line is not None, **more)


def texts(pieces):
    return [piece.text for piece in pieces]


def test_long_words_count_for_more():
    assert weights(["a b", "x" * 100, "x" * 39 + " y"], count) == [2, 5, 2]


@pytest.mark.parametrize(
    ("kind", "text", "most", "parts"),
    [
        ("text", "a b.\n\nc d. e f.", 2, ["a b.", "c d.", "e f."]),
        ("text", "a b.\n\nc d.\n\ne f.", 4, ["a b.\n\nc d.", "e f."]),
        ("text", "one two three four five", 2, ["one two", "three four", "five"]),
        ("text", "a b\nc d\ne", 2, ["a b", "c d", "e"]),
        ("list", "- a b\n  c\n- d e f", 4, ["- a b\n  c", "- d e f"]),
        ("code", "a b\nc\n\nd e\nf", 3, ["a b\nc", "d e\nf"]),
        ("table", "a | b c\nd | e", 4, ["a | b c", "d | e"]),
        ("table", "aa bb cc | dd ee", 4, ["aa bb cc |", "dd ee"]),
    ],
)
def test_a_block_is_cut_at_the_best_border_that_fits(kind, text, most, parts):
    assert texts(cut(block(text, kind), most, count)) == parts


def test_pieces_keep_their_line_and_what_lies_between():
    pieces = list(cut(block("\n  a b\n\n\nc d\ne f\n", "code", line=10), 2, count))
    assert [(p.text, p.place.line, p.glue) for p in pieces] == [
        ("  a b", 11, None),
        ("c d", 14, "\n\n\n"),
        ("e f", 15, "\n"),
    ]
    flat = list(cut(Block("text", "a\n\nb", Place(page=3)), 1, count))
    assert [(p.place.line, p.place.page) for p in flat] == [(None, 3)] * 2
    assert whole(block("a b", line=4), 2) == BlockPiece("a b", Place(line=4), "text", 2, True)
    assert whole(block("\n\na b ", line=4), 2) == BlockPiece("a b", Place(line=6), "text", 2, True)


def test_every_n_th_border_is_cut_at():
    text = block("A b. C d. E f. G h i. J")
    assert texts(cut_at(text, SENTENCE, 9, count)) == ["A b.", "C d.", "E f.", "G h i.", "J"]
    assert texts(cut_at(text, SENTENCE, 9, count, every=2)) == ["A b. C d.", "E f. G h i.", "J"]
    assert texts(cut_at(text, SENTENCE, 2, count)) == ["A b.", "C d.", "E f.", "G h", "i.", "J"]
    assert [p.tokens for p in cut_at(block("a b\n \nc"), LINE, 9, count)] == [2, 1]


def test_a_word_without_borders_is_halved():
    assert list(_halves("x" * 100, 0, 100, 1, count)) == [(0, 25, 1), (25, 50, 1), (50, 75, 1), (75, 100, 1)]
    assert list(_halves("x" * 100, 0, 100, 2, count)) == [(0, 50, 2), (50, 100, 2)]
    assert list(_halves("xx", 0, 2, 0, count)) == [(0, 1, 1), (1, 2, 1)]
    assert list(_halves("x", 0, 1, 0, count)) == [(0, 1, 1)]


def chunks(*blocks, wanted=20, most=30, carry=None, to_pieces=None):
    def pieces(one, tokens, wanted, most):
        return [whole(one, tokens)] if tokens <= most else cut(one, wanted, count)

    filler = Filler(count, wanted, most, to_pieces or pieces, carry)
    return [(c.headings, c.text, c.tokens) for c in filler.passages(blocks)]


def words(number, word="w"):
    return " ".join(f"{word}{n}" for n in range(number))


def heading(text, level=1):
    return Block("heading", text, Place(), level)


def test_a_small_rest_joins_the_passage_before():
    assert [t for _, _, t in chunks(block(words(20)), block(words(5, "r")))] == [25]
    assert [t for _, _, t in chunks(block(words(20)), block(words(6, "r")))] == [20, 6]
    assert [t for _, _, t in chunks(block(words(20)), block(words(5, "r")), most=24)] == [20, 5]
    apart = [Block("text", words(20), Place(page=1)), Block("text", words(5, "r"), Place(page=2))]
    assert [t for _, _, t in chunks(*apart)] == [20, 5]  # no passage crosses a page


def test_a_section_begins_with_nothing_of_the_one_before():
    """With its arrow the heading takes 2 of 20 tokens, and 18 fit below it."""
    found = chunks(block(words(3)), heading("h"), block(words(10)), block(words(8)))
    assert [tokens for _, _, tokens in found] == [3, 19]


def test_a_passage_begins_with_what_is_carried():
    found = chunks(*(block(words(6, c)) for c in "abcd"), carry=lambda pieces: pieces[-2:])
    assert [text.split()[0] for _, text, _ in found] == ["a0", "b0"] and [t for _, _, t in found] == [18, 18]
    long = chunks(block(words(12)), block(words(15, "x")), carry=lambda pieces: pieces)
    assert [t for _, _, t in long] == [12, 15]  # what leaves no room is not carried


def test_headings_take_a_quarter_at_most_the_innermost_first():
    """With its arrow c takes 2 tokens, b and a take 3 more each; what is not above a passage is one of its own."""
    blocks = [heading(words(2, "a")), heading(words(2, "b"), 2), heading("c", 3), block("text")]
    a, b = words(2, "a"), words(2, "b")
    assert chunks(*blocks) == [((), a, 2), ((b, "c"), "text", 5)]
    assert chunks(*blocks, wanted=32, most=40)[-1] == ((a, b, "c"), "text", 8)
    assert chunks(*blocks, wanted=16) == [((), a, 2), ((a,), b, 4), (("c",), "text", 2)]


def test_a_heading_that_is_too_long_is_shown_once_and_begun_above():
    title = words(12, "t")
    assert chunks(heading(title), block("text")) == [(("t0 t1 …",), f"{title}\n\ntext", 16)]


def test_the_header_of_a_table_is_repeated_and_a_long_one_is_not():
    rows = [block(f"r{n} | {words(7)}", "table", header="h1 | h2") for n in range(4)]
    assert [text for _, text, _ in chunks(*rows)] == [f"h1 | h2\nr{n} | {words(7)}" for n in range(4)]
    long = [block(f"r{n} | {words(7)}", "table", header=words(12, "h")) for n in range(3)]
    r = [f"r{n} | {words(7)}" for n in range(3)]
    assert [text for _, text, _ in chunks(*long)] == [words(12, "h"), f"{r[0]}\n{r[1]}", r[2]]


def test_a_header_is_counted_once_for_the_rows_below_it():
    """3 words, then a header of 3, then rows of 5, 5 and 4: 20 in all."""
    rows = [block(words(n), "table", header="h1 | h2") for n in (5, 5, 4)]
    assert [tokens for _, _, tokens in chunks(block(words(3)), *rows)] == [20]


def test_pieces_are_joined_as_their_kind_wants():
    def piece(text, kind="text", **more):
        return BlockPiece(text, Place(), kind, 1, **more)

    assert _joined([piece("a"), piece("b")]) == "a\n\nb" and _joined([piece("a", "list"), piece("b", "list")]) == "a\nb"
    assert (
        _joined([piece("a", "list"), piece("b", "table")]) == "a\n\nb"
        and _joined([piece("a"), piece("b", glue=" ")]) == "a b"
    )
    rows = [piece("1", "table", header="h"), piece("2", "table", header="h"), piece("3", "table", header="k")]
    assert _joined(rows) == "h\n1\n2\nk\n3"


def test_a_passage_that_is_too_large_as_a_whole_is_split():
    def heavy(texts):  # an embedder that counts line breaks too
        return [len(text.split()) + 9 * text.count("\n\n") for text in texts]

    def pieces(one, tokens, wanted, most):
        return [whole(one, tokens)]

    filler = Filler(heavy, 20, 22, pieces)
    found = [(c.text.count("a"), c.tokens) for c in filler.passages([block("a a a") for _ in range(4)])]
    assert found == [(6, 15), (6, 15)]
    one = Filler(count, 4, 4, lambda b, t, w, m: [whole(b, t)])
    assert [c.tokens for c in one.passages([block(words(9))])] == [4, 2, 3]


def test_blocks_are_counted_in_batches(monkeypatch):
    monkeypatch.setattr(_fill_passages, "_BATCH_CHARACTERS", 5)
    given = [block("abc"), block(" "), block("defg"), block("h")]
    assert [texts(some) for some in _together(given)] == [["abc", "defg"], ["h"]]
