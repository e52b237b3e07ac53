"""Examples are shown as they are learned from."""

import io

from rich.console import Console

from settle.show.talk import Talk
from tests.records import as_event

ROW = {
    "origin": "a.jsonl:7",
    "part": "",
    "pieces": [["<|user|>\nWhat [bold]colour[/bold]?\n", False], ["It is red.<|end|>", True]],
    "num_tokens": 31,
    "num_supervised": 5,
}
LONG = ROW | {"part": "chosen", "pieces": [["q" * 5000, False], ["a" * 5000, True]]}
READ = {
    "layouts": {"a.jsonl": {"layout": "prompt_completion", "columns": {"prompt": "question", "answer": "answer"}}},
    "train": {"rows": 1234, "tokens": 50_000, "supervised": 20_000},
    "selection": {"rows": 61},
    "held_out": {"rows": 130},
    "supervise": "assistant",
    "lengths": {"median": 40, "p95": 90, "max": 431},
    "dropped": {"exact duplicate": {"count": 12}},
    "mended": {},
    "skipped": {"text beside files of rows": {"count": 1}},
    "found": {"e-mail addresses": 3, "keys and passwords": 1},
    "found_at": {"e-mail addresses": ["a.jsonl:1"], "keys and passwords": ["a.jsonl:7"]},
    "too_long": {"dropped": 0, "shortened": 2, "answers_lost": 3},
    "notes": ["the chat template knows no tools: they are told in the system prompt"],
}


def shown(event: dict, **console: object) -> str:
    stream = io.StringIO()
    talk = Talk(Console(file=stream, width=100, **console))  # type: ignore[arg-type]
    talk.show(as_event(event))
    talk.close()
    return stream.getvalue()


def test_what_is_learned_stands_out() -> None:
    event = {"kind": "preview", "rows": [ROW, LONG]}
    plain = shown(event)
    assert "a.jsonl:7: 5 of 31 tokens are learned\n<|user|>\nWhat [bold]colour[/bold]?\n⟦It is red.<|end|>⟧" in plain
    assert "a.jsonl:7, chosen:" in plain and "… 4,500 characters …" in plain and "… 4,100 characters …" in plain
    coloured = shown(event, force_terminal=True, color_system="standard")
    assert "\x1b[32mIt is red.<|end|>" in coloured and "⟦" not in coloured
    assert "⟦It is red." in shown(event, force_terminal=True, no_color=True)


def test_a_column_of_labels_that_is_not_learned() -> None:
    layouts = {"t.csv": {"layout": "text", "columns": {"text": "Text"}, "labels": "Kategorie"}}
    text = shown({"kind": "rows"} | READ | {"layouts": layouts})
    assert "column 'Kategorie' is not learned; it seems to hold labels: `--objective decision` learns them" in text


def test_one_row_is_not_rows() -> None:
    text = shown({"kind": "rows"} | READ | {"train": READ["train"] | {"rows": 1}, "too_long": {"shortened": 1}})
    assert "1 row to learn from" in text and "for their length: 1 row\n" in text


def test_how_rows_were_understood() -> None:
    text = shown({"kind": "rows"} | READ)
    for said in (
        "a.jsonl: prompt_completion (prompt from 'question', answer)",
        "1,234 rows to learn from, 61 to choose the best weights, 130 held out to judge",
        "tokens, 40% of them supervised (assistant); the longest row has 431",
        "left out: exact duplicate (12) · files or folders not read: text beside files of rows (1) · found: e-mail",
        "! keys and passwords in what is learned: 1, at a.jsonl:7; remove them, or the model may repeat them",
        "later answers left out for their length: 2 rows",
        "knows no tools",
    ):
        assert said in text


TEXT = {
    "kind": "text",
    "read": 336,
    "train": {"documents": 240},
    "selection": {"documents": 12},
    "held_out": {"documents": 24},
    "dropped": {"near duplicate": {"count": 12}, "exact duplicate": {"count": 60}},
    "mended": {},
    "skipped": {"needs pypdf: pip install 'settle-lm[rag]'": {"count": 2}},
    "found": {"keys and passwords": 30},
    "found_at": {"keys and passwords": ["notes/a.md:12", "notes/b.md:3"]},
    "omissions": {"a.pdf": ["page 3 is a picture: no text"], "b.pdf": ["page 1 is a picture: no text"]},
}


def test_documents_that_are_cut_are_not_counted_as_if_they_were_whole() -> None:
    """61 documents: parts of one may be learned from and others held out, which is no leak."""
    cut = {"read": 61, "train": {"documents": 61}, "selection": {"documents": 52}, "held_out": {"documents": 53}}
    assert shown(TEXT | cut).startswith(
        "61 documents read, parts of 61 to learn from, parts of 52 to choose the best weights, parts of 53 held out"
    )


def test_what_became_of_text_is_one_line_and_keys_have_their_places() -> None:
    assert shown(TEXT).splitlines() == [
        "336 documents read, 240 to learn from, 12 to choose the best weights, 24 held out to judge · "
        "left out: exact duplicate (60), near duplicate (12) · "
        "files or folders not read: needs pypdf: pip install 'settle-lm[rag]' (2) · "
        "not read of a.pdf: page 3 is a picture: no text, and of 1 more · found: keys and passwords (30)",
        "! keys and passwords in what is learned: 30, at notes/a.md:12, notes/b.md:3, …; "
        "--data.mask keys replaces them",
    ]
    masked = TEXT | {"mended": {"keys and passwords masked": {"count": 2}}}
    assert "!" not in shown(masked) and "repaired: keys and passwords masked (2)" in shown(masked)


def test_reasons_that_differ_from_file_to_file_do_not_fill_the_line() -> None:
    skipped = {f"no valid JSON in line {n}": {"count": 1, "examples": [{"where": f"{n}.json"}]} for n in range(1, 41)}
    text = shown(TEXT | {"skipped": skipped | {"a picture": {"count": 5}}})
    assert "a picture (5), no valid JSON in line 1 (1.json), " in text and "(5.json), 35 for other reasons · " in text
