"""How passages follow a document. Words are tokens here, so that sizes can be seen."""

from settle.documents.blocks import Block, Chunk, Place
from settle.retrieve.index.chunkers.sentences import Sentences
from settle.retrieve.index.chunkers.structure import Structure
from settle.retrieve.index.chunkers.window import SlidingWindow


def _count(texts):
    return [len(text.split()) for text in texts]


def _cut(*blocks: Block, tokens: int = 20, most: int = 30, chunker=None) -> list[Chunk]:
    return list((chunker or Structure(tokens=tokens)).cut(iter(blocks), _count, most))


def _words(count: int, word: str = "word") -> str:
    return " ".join(f"{word}{i}" for i in range(count))


def _heading(text: str, level: int) -> Block:
    return Block("heading", text, level=level)


def test_paragraphs_of_a_section_are_put_together_and_those_of_two_are_not():
    chunks = _cut(
        _heading("One", 1), Block("text", "a b"), Block("text", "c"), _heading("Two", 2), Block("text", "d"),
        _heading("Three", 2), Block("text", "e"), _heading("Four", 1), Block("text", "f"),
    )  # fmt: skip
    assert [(chunk.headings, chunk.text) for chunk in chunks] == [
        (("One",), "a b\n\nc"),
        (("One", "Two"), "d"),
        (("One", "Three"), "e"),
        (("Four",), "f"),
    ]
    assert chunks[1].embedded == "One › Two\nd"


def test_a_heading_without_text_is_a_passage_unless_it_stands_above_another():
    chunks = _cut(_heading("One", 1), _heading("Two", 2), _heading("Three", 2), Block("text", "x"), _heading("Four", 1))
    found = [(chunk.headings, chunk.text) for chunk in chunks]
    assert found == [(("One",), "Two"), (("One", "Three"), "x"), ((), "Four")]


def test_a_block_may_say_that_inner_sections_have_ended():
    below = Block("text", "its words", level=7), Block("text", "after it", level=6)
    chunks = _cut(_heading("Page", 1), _heading("term", 7), *below)
    found = [(chunk.headings, chunk.text) for chunk in chunks]
    assert found == [(("Page", "term"), "its words"), (("Page",), "after it")]


def test_a_block_that_the_embedder_reads_whole_is_never_cut():
    listing = Block("code", "\n\n".join(_words(8, f"w{i}_") for i in range(3)))
    chunks = _cut(Block("text", _words(10)), listing, Block("text", _words(10)))
    assert [len(chunk.text.split()) for chunk in chunks] == [10, 24, 10] and chunks[1].text == listing.text


def test_a_listing_is_cut_at_empty_lines_first():
    functions = ["\n".join(_words(4, f"f{i}_{j}_") for j in range(4)) for i in range(5)]
    block = Block("code", "\n\n".join(functions), Place(line=10), lined=True)
    chunks = _cut(block)
    assert [chunk.text for chunk in chunks] == functions
    assert [chunk.place.line for chunk in chunks] == [10, 15, 20, 25, 30]


def test_a_table_keeps_its_header_above_each_part():
    rows = "\n".join(f"name{i} | {i} | so" for i in range(12))
    chunks = _cut(Block("table", rows, Place(line=3), lined=True, header="name | number | what"))
    assert len(chunks) > 2 and all(chunk.text.startswith("name | number | what\n") for chunk in chunks)
    assert "".join(chunk.text.partition("\n")[2] + "\n" for chunk in chunks) == rows + "\n"
    assert [chunk.place.line for chunk in chunks] == [3, 6, 9, 12]


def test_a_long_paragraph_is_cut_at_sentences():
    sentences = [_words(7, f"s{i}_") + ". " for i in range(6)]
    chunks = _cut(Block("text", "".join(sentences)))
    assert [chunk.text for chunk in chunks] == ["".join(sentences[i : i + 2]).strip() for i in (0, 2, 4)]


def test_a_passage_ends_with_its_page():
    chunks = _cut(*(Block("text", f"page {page}", Place(page=page)) for page in (1, 1, 2)))
    assert [(chunk.place.page, chunk.text) for chunk in chunks] == [(1, "page 1\n\npage 1"), (2, "page 2")]


def test_a_word_without_end_counts_as_many():
    chunks = _cut(Block("text", "x" * 5000))
    assert len(chunks) > 5 and "".join(chunk.text for chunk in chunks) == "x" * 5000


def test_sentences_overlap_by_sentences():
    text = Block("text", " ".join(f"This is sentence number {i}." for i in range(8)))
    chunks = _cut(text, chunker=Sentences(tokens=16, overlap=1))
    numbers = [[int(word.strip(".")) for word in chunk.text.split() if word.strip(".").isdigit()] for chunk in chunks]
    assert numbers == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7]]


def test_windows_overlap_by_tokens():
    chunks = _cut(Block("text", _words(100)), chunker=SlidingWindow(tokens=30, overlap=10))
    assert all(len(chunk.text.split()) <= 30 for chunk in chunks)
    for before, after in zip(chunks, chunks[1:], strict=False):
        shared = [word for word in before.text.split() if word in set(after.text.split())]
        assert shared == before.text.split()[-len(shared) :] and 0 < len(shared) <= 10


def test_no_document_no_passages():
    assert _cut() == [] and _cut(Block("text", " \n "), _heading(" ", 1)) == []


def _option(name: str, number: int) -> tuple[Block, Block]:
    """As manuals of programs have it: a table of one row, and a paragraph."""
    return Block("table", f"{name} | integer | 30"), Block("text", _words(number, name))


def test_a_row_by_itself_begins_a_passage_with_the_text_below_it():
    """Else the name and default of an option end the passage of the one before it, and its description has no name."""
    chunks = _cut(_heading("Options", 1), *_option("a", 9), *_option("b", 9), *_option("c", 9), tokens=30, most=40)
    assert [chunk.text.split()[0] for chunk in chunks] == ["a", "b", "c"]
    assert all(f"| 30\n\n{chunk.text[0]}0 " in chunk.text for chunk in chunks)


def test_a_row_and_its_text_stay_together_where_they_fit_into_a_passage_at_all():
    chunks = _cut(*_option("a", 22), *_option("b", 9), tokens=20, most=30)
    assert [chunk.text.split()[0] for chunk in chunks] == ["a", "b"] and "a21" in chunks[0].text


def test_rows_below_one_another_stay_together():
    """As those of a sheet without a header."""
    rows = [Block("table", f"{n} | {n + 1} | {n + 2}") for n in range(4)]
    (chunk,) = _cut(Block("text", "Figures of the year"), *rows, tokens=40, most=40)
    assert chunk.text.count("\n") == 5
