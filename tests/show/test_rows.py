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
    "held_out": {"rows": 130},
    "supervise": "assistant",
    "lengths": {"median": 40, "p95": 90, "max": 431},
    "dropped": {"exact duplicate": {"count": 12}},
    "mended": {},
    "skipped": {"text beside files of rows": {"count": 1}},
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


def test_how_rows_were_understood() -> None:
    text = shown({"kind": "rows"} | READ)
    for said in (
        "a.jsonl: prompt_completion (prompt from 'question', answer)",
        "1,234 rows to learn from, 130 held out",
        "tokens, 40% of them supervised (assistant); the longest row has 431",
        "exact duplicate: 12 left out",
        "later answers left out for their length: 2 rows",
        "knows no tools",
        "text beside files of rows: 1 files not read",
    ):
        assert said in text
