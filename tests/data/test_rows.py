"""From files of examples to row stores and batches."""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Event
from settle.data.batches import RowBatches, held_out_rows
from settle.data.rows.prepare import RowCorpus, prepare_rows, prepared_rows
from settle.data.settings import RowSettings
from settle.data.split import judging_share
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from tests.records import into

COLOURS = ("red", "green", "blue", "grey", "black", "white", "brown", "pink", "gold", "teal")
THINGS = ("a stone", "the sea", "an old wall", "her coat", "that door", "my lamp", "their boat", "the hill", "a bird")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ByteBpeTokenizer:
    words = [f"What colour is {thing}? It is {colour}." for thing in THINGS for colour in COLOURS]
    return ByteBpeTokenizer.train(words, 400, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))


def pairs() -> Iterator[tuple[str, str]]:
    for i, thing in enumerate(THINGS):
        for j, colour in enumerate(COLOURS):
            yield f"What colour is {thing}, number {i * 10 + j}?", f"{thing.capitalize()} is {colour}, {j} times {i}."


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(tokenizer: ByteBpeTokenizer, *inputs: Path, **settings: Any) -> RowCorpus:
    return prepare_rows([str(i) for i in inputs], tokenizer, RowSettings(**settings), Events())


def supervised(corpus: RowCorpus, tokenizer: ByteBpeTokenizer) -> set[str]:
    """What is learned, of all sides, with the end of the turn written out."""
    said = set()
    for store in (corpus.train, corpus.selection, corpus.held_out):
        for i in range(store.num_documents):
            ids = store.document(i)[store.mask(i) == 1]
            said.add("".join(tokenizer.tokens[t] if t == tokenizer.turn_end_id else tokenizer.decode([t]) for t in ids))
    return said


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs()]
    return write(tmp_path / "chats.jsonl", [{"messages": m} for m in turns])


def test_labels_beside_a_text_are_not_passed_over_in_silence(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"Text": q, "Nr": str(n), "Kategorie": ("Konto", "Lieferung")[n % 2]} for n, (q, _) in enumerate(pairs())]
    layout = {"layout": "text", "columns": {"text": "Text"}}
    with_labels = run(tokenizer, write(tmp_path / "tickets.jsonl", rows)).ledger["layouts"]
    assert with_labels == {"tickets.jsonl": layout | {"labels": "Kategorie"}}
    texts = [{"Text": row["Text"], "Nr": row["Nr"]} for row in rows]
    assert run(tokenizer, write(tmp_path / "texts.jsonl", texts)).ledger["layouts"] == {"texts.jsonl": layout}


def test_messages_are_supervised_to_the_token(tokenizer: ByteBpeTokenizer, chats: Path) -> None:
    corpus = run(tokenizer, chats)
    assert corpus.kind == "chat" and corpus.template == tokenizer.chat_template
    assert supervised(corpus, tokenizer) == {f"{a}<|im_end|>" for _, a in pairs()}
    assert corpus.train.num_rows + corpus.selection.num_rows + corpus.held_out.num_rows == 90 == corpus.ledger["kept"]
    assert 25 <= corpus.held_out.num_rows <= 30 and 3 <= corpus.selection.num_rows <= 5
    asked = run(tokenizer, chats, held_out=0.1)
    assert 5 <= asked.held_out.num_rows <= 9 and 3 <= asked.selection.num_rows <= 5
    assert corpus.ledger["layouts"]["chats.jsonl"] == {"layout": "messages", "columns": {"messages": "messages"}}
    assert not corpus.train.mask(0)[0]
    assert len(corpus.previews) == 5
    for preview in corpus.previews:
        (question, no), (answer, yes) = preview.pieces
        assert (no, yes) == (False, True)
        assert question.endswith("<|im_start|>assistant\n") and answer.endswith("<|im_end|>")
    (example, *others) = corpus.examples("held_out")
    assert len(others) + 1 == corpus.held_out.num_rows and example.messages[1]["role"] == "assistant"


def test_the_same_rows_however_they_are_written(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    questions = list(pairs())
    ways = {
        "prompt": [{"prompt": q, "completion": a} for q, a in questions],
        "article": [{"article": q, "summary": a, "score": 0.5} for q, a in questions],
        "question": [{"question": q, "answer": a, "id": 7} for q, a in questions],
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in questions],
        "sharegpt": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in questions
        ],
        "lists": [
            {
                "prompt": [{"role": "user", "content": q}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": a}]}],
            }
            for q, a in questions
        ],
    }
    found = [run(tokenizer, write(tmp_path / f"{name}.jsonl", rows)) for name, rows in ways.items()]
    table = tmp_path / "table.csv"
    table.write_text("frage,antwort,n\n" + "".join(f'"{q}","{a}",{i}\n' for i, (q, a) in enumerate(questions)))
    found.append(run(tokenizer, table, columns={"prompt": "frage", "completion": "antwort"}))
    for corpus in found:
        assert np.array_equal(corpus.train.tokens, found[0].train.tokens)
        assert np.array_equal(corpus.train.supervised, found[0].train.supervised)
        assert np.array_equal(corpus.held_out.tokens, found[0].held_out.tokens)


def test_rows_of_json_in_a_table_are_learned_whole(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [(q, json.dumps({"answer": a, "asks": q})) for q, a in pairs()]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "completion"), *rows])
    corpus = run(tokenizer, tmp_path / "table.csv")
    assert supervised(corpus, tokenizer) == {f"{answer}<|im_end|>" for _, answer in rows}


def test_a_row_of_a_table_that_does_not_fit_is_named(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = [f'"{q}","{a}"' for q, a in pairs()]
    lines[7], lines[9] = "Is it red, or blue?,blue", "only a question"
    path.write_text("prompt,completion\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"2 rows.*2 columns of the header: table\.csv:9.*only 'prompt': table\.csv:11"):
        run(tokenizer, path)
    dropped = run(tokenizer, path, drop_broken=True).ledger["dropped"]
    assert sum(reason["count"] for reason in dropped.values()) == 2


def test_a_corpus_is_made_once(tokenizer: ByteBpeTokenizer, chats: Path) -> None:
    corpus = run(tokenizer, chats)
    before = (corpus.train.folder / "tokens.bin").stat().st_mtime_ns
    again = run(tokenizer, chats)
    assert again.fingerprint == corpus.fingerprint and again.ledger == corpus.ledger
    assert again.previews == corpus.previews
    assert (again.train.folder / "tokens.bin").stat().st_mtime_ns == before
    assert run(tokenizer, chats, supervise="all").fingerprint != corpus.fingerprint
    (corpus.train.folder / "supervised.bin").write_bytes(b"")
    assert prepared_rows(corpus.fingerprint) is None
    assert run(tokenizer, chats).train.num_rows == corpus.train.num_rows


def test_batches_are_whole_rows_and_a_pure_function(tokenizer: ByteBpeTokenizer, chats: Path) -> None:
    store = run(tokenizer, chats).train
    batches = RowBatches(store, rows_per_batch=8, seed=3)
    seen = np.zeros(store.num_documents, int)
    for position in range(2 * store.num_rows):
        batch, rows = batches.at(position), batches.rows_of(position)
        assert len(rows) == 8 == len(batch.cu_seqlens) - 1
        for (document, start, stop), first, last in zip(rows, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            seen[document] += 1
            ids, mask = store.document(document), store.mask(document)
            assert (start, stop) == (1, len(ids))
            assert np.array_equal(batch.inputs[first:last], ids[:-1])
            assert np.array_equal(batch.targets[first:last], np.where(mask[1:] == 1, ids[1:].astype(int), -1))
            assert np.array_equal(batch.positions[first:last], np.arange(len(ids) - 1))
    assert (seen == 16).all()
    assert batches.epoch(store.num_rows) == 8
    again = RowBatches(store, 8, seed=3)
    assert np.array_equal(again.at(57).inputs, batches.at(57).inputs)
    assert not np.array_equal(RowBatches(store, 8, seed=4).at(0).inputs, batches.at(0).inputs)
    held_out = list(held_out_rows(store, 200))
    assert sum(len(b.inputs) for b in held_out) == store.num_inputs
    assert sum(int((b.targets >= 0).sum()) for b in held_out) == store.num_supervised
    assert sum(len(b.inputs) for b in held_out_rows(store, 200, limit_tokens=500)) < 800


ASK, SAY = {"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "It is red."}
BROKEN = {
    "two assistant turns in a row": {"messages": [ASK, SAY, SAY]},
    "an empty answer": {"messages": [ASK, {"role": "assistant", "content": " \n"}]},
    "an unknown role 'narrator'": {"messages": [{"role": "narrator", "content": "x"}, SAY]},
    "an answer before any question": {"messages": [SAY]},
    "no answer": {"messages": [ASK]},
    "a turn without a role": {"messages": [{"content": "x"}, SAY]},
    "a turn without content": {"messages": [{"role": "user", "content": None}, SAY]},
    "content that is no text": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, SAY]},
    "a system turn in the middle": {"messages": [ASK, SAY, {"role": "system", "content": "s"}, ASK, SAY]},
    "a tool's result without a call": {"messages": [ASK, {"role": "tool", "content": "4"}, SAY]},
    "no list of turns": {"messages": []},
    "written as prompt_completion": {"prompt": "a", "completion": "b"},
    "a row that has only 'massages'": {"massages": [ASK, SAY]},
    "a line that is no JSON": None,
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_and_mixed_rows_are_refused_by_number(tokenizer: ByteBpeTokenizer, chats: Path, reason: str) -> None:
    lines = chats.read_text().splitlines()
    lines[6] = lines[70] = json.dumps(BROKEN[reason]) if BROKEN[reason] else "{"
    chats.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        run(tokenizer, chats)
    assert reason in caught.value.what and "chats.jsonl:7, chats.jsonl:71" in caught.value.what
    assert "2 rows cannot be used" in caught.value.what and "drop-broken" in caught.value.fix
    assert not [p for p in (chats.parent / "home" / "tokens").iterdir() if p.is_dir()]
    corpus = run(tokenizer, chats, drop_broken=True)
    assert corpus.ledger["kept"] == 88
    assert sum(entry["count"] for entry in corpus.ledger["dropped"].values()) == 2


def test_unknown_columns_and_mixed_kinds(tokenizer: ByteBpeTokenizer, chats: Path, tmp_path: Path) -> None:
    strange = write(tmp_path / "strange.jsonl", [{"frage": "a", "antwort": "b"}] * 3)
    with pytest.raises(DataError, match="its rows have 'frage', 'antwort'"):
        run(tokenizer, strange)
    text = write(tmp_path / "text.jsonl", [{"text": f"{q} {a}"} for q, a in pairs()])
    with pytest.raises(DataError, match="text.jsonl holds text rows, the files before it chat rows"):
        run(tokenizer, chats, text)
    with pytest.raises(DataError, match="empty.jsonl holds no rows"):
        run(tokenizer, write(tmp_path / "empty.jsonl", []))


def test_what_is_wrong_with_json_is_said_with_its_line(tokenizer: ByteBpeTokenizer, chats: Path) -> None:
    lines = chats.read_text().splitlines()
    bad = '{"prompt": "a" "completion": "b"}'
    chats.write_text("\n".join([*lines[:6], bad, *lines[6:], "{"]))
    first = "chats.jsonl:92 (the first: expecting ',' delimiter, column 16)"
    with pytest.raises(DataError, match="a line that is no JSON: .*" + re.escape(first)):
        run(tokenizer, chats)
    chats.write_text("\n".join(["", *[bad] * 3]))
    with pytest.raises(DataError, match=re.escape("can be read: line 2: a line that is no JSON (exp")):
        run(tokenizer, chats)


def test_a_turn_cannot_write_special_tokens(tokenizer: ByteBpeTokenizer, chats: Path) -> None:
    lines = chats.read_text().splitlines()
    lines[8] = json.dumps({"messages": [{"role": "user", "content": "a<|im_end|>b"}, SAY]})
    chats.write_text("\n".join(lines))
    with pytest.raises(DataError, match="1 row cannot be used: a special token of the model within a turn: .*:9"):
        run(tokenizer, chats)


def test_a_folder_of_rows_may_hold_a_readme(tokenizer: ByteBpeTokenizer, chats: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    chats.rename(folder / "chats.jsonl")
    (folder / "README.md").write_text("What this is.")
    corpus = run(tokenizer, folder)
    assert corpus.ledger["kept"] == 90
    assert corpus.ledger["skipped"]["text beside files of rows"]["examples"] == [{"where": "README.md"}]


def test_plain_text_goes_on(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"{q} {a}", "source": "x"} for q, a in pairs()]
    corpus = run(tokenizer, write(tmp_path / "text.jsonl", rows))
    assert corpus.kind == "text"
    for i in range(corpus.train.num_rows):
        ids, mask = corpus.train.document(i), corpus.train.mask(i)
        assert ids[-1] == tokenizer.eos_id and mask.tolist() == [0] + [1] * (len(ids) - 1)
    cut = run(tokenizer, tmp_path / "text.jsonl", max_tokens=20)
    assert cut.train.lengths.max() == 20 and cut.train.num_supervised == corpus.train.num_supervised
    (tmp_path / "book.txt").write_text("\n\n".join(f"{q} {a}" for q, a in pairs()))
    book = run(tokenizer, tmp_path / "book.txt")
    text = "".join(
        tokenizer.decode(s.document(i)) for s in (book.train, book.selection, book.held_out) for i in range(s.num_rows)
    )
    assert text == (tmp_path / "book.txt").read_text()


def test_preferences_are_two_segments_a_row(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    questions = list(pairs())
    turns = [{"role": "user", "content": q} for q, _ in questions]
    ways = {
        "text": [{"prompt": q, "chosen": a, "rejected": f"No, {a}"} for q, a in questions],
        "sharegpt": [
            {
                "conversations": [{"from": "human", "value": q}],
                "chosen": {"from": "gpt", "value": a},
                "rejected": {"from": "gpt", "value": f"No, {a}"},
            }
            for q, a in questions
        ],
        "whole": [
            {
                name: [turn, {"role": "assistant", "content": text}]
                for name, text in (("chosen", a), ("rejected", f"No, {a}"))
            }
            for turn, (_, a) in zip(turns, questions, strict=True)
        ],
        "repeated": [
            {"prompt": q, "chosen": [turn, {"role": "assistant", "content": a}], "rejected": f"No, {a}"}
            for turn, (q, a) in zip(turns, questions, strict=True)
        ],
        "dialogue": [
            {"chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {q}\n\nAssistant: No, {a}"}
            for q, a in questions
        ],
        "openai": [
            {
                "input": {"messages": [turn]},
                "preferred_output": [{"role": "assistant", "content": a}],
                "non_preferred_output": [{"role": "assistant", "content": f"No, {a}"}],
            }
            for turn, (_, a) in zip(turns, questions, strict=True)
        ],
    }
    found = [run(tokenizer, write(tmp_path / f"{name}.jsonl", rows)) for name, rows in ways.items()]
    for corpus in found:
        assert corpus.kind == "preference" and np.array_equal(corpus.train.tokens, found[0].train.tokens)
    store = found[0].train
    assert store.num_documents == 2 * store.num_rows
    batches = RowBatches(store, 4, seed=0)
    assert len(batches.at(0).cu_seqlens) == 9
    for (chosen, *_), (rejected, *_) in zip(batches.rows_of(5)[::2], batches.rows_of(5)[1::2], strict=True):
        assert rejected == chosen + 1 and store.origin(chosen) == store.origin(rejected)
        better, worse = (tokenizer.decode(store.document(i)[store.mask(i) == 1]) for i in (chosen, rejected))
        assert worse == f"No, {better}"
    assert {p.part for p in found[0].previews} == {"chosen", "rejected"}
    with pytest.raises(DataError, match="chosen and rejected are the same: same.jsonl:1"):
        run(tokenizer, write(tmp_path / "same.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2))


def test_tools_in_sharegpt_s_form(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": "human", "value": q},
                {"from": "function_call", "value": json.dumps({"name": "colour_of", "arguments": {"n": n}})},
                {"from": "observation", "value": '{"colour": "red"}'},
                {"from": "gpt", "value": a},
            ],
            "tools": json.dumps([{"name": "colour_of", "parameters": {"type": "object", "properties": {}}}]),
        }
        for n, (q, a) in enumerate(pairs())
    ]
    corpus = run(tokenizer, write(tmp_path / "tools.jsonl", rows))
    said = supervised(corpus, tokenizer)
    assert len(corpus.ledger["rows"]["notes"]) == 3  # settle's own template knows neither tools, nor calls, nor results
    assert any('<tool_call>\n{"name": "colour_of", "arguments": {"n": 7}}\n</tool_call><|im_end|>' in s for s in said)
    example = next(corpus.examples())
    known = run(tokenizer, tmp_path / "tools.jsonl", template="chatml")
    assert known.ledger["rows"]["notes"] == [] and supervised(known, tokenizer) == said
    assert np.array_equal(known.train.tokens, corpus.train.tokens)
    # what is asked is written as the rows were, so that whoever asks it asks the same
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert not example.tools and '"colour_of"' in example.messages[0]["content"]
    assert example.messages[2]["content"].startswith("<tool_call>\n")


def test_near_duplicates_and_equal_prompts_are_on_one_side(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    rows += [{"prompt": row["prompt"], "completion": f"I say: {row['completion'].upper()}"} for row in rows[:60]]
    rows += rows[:10]
    corpus = run(tokenizer, write(tmp_path / "a.jsonl", rows), held_out=0.2)
    assert corpus.ledger["dropped"]["exact duplicate"]["count"] == 10
    asked = {
        side: {e.messages[0]["content"] for e in corpus.examples(side)} for side in ("train", "selection", "held_out")
    }
    assert len(asked["held_out"]) >= 10 and len(asked["selection"]) >= 5
    assert not any(asked[a] & asked[b] for a, b in itertools.combinations(asked, 2))
    again = run(tokenizer, tmp_path / "a.jsonl", held_out=0.2, repeats=True)
    assert again.ledger["kept"] == 160


def test_a_column_that_is_not_there_is_named(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"frage": q, "antwort": a} for q, a in pairs()])
    with pytest.raises(DataError, match="no column 'frag': the rows of a.jsonl have 'frage', 'antwort'") as caught:
        run(tokenizer, path, columns={"prompt": "frag", "completion": "antwort"})
    assert caught.value.fix == "did you mean --rows.columns.prompt frage?"
    given = {"prompt": "frage", "completion": "antwort"}
    with pytest.raises(DataError, match="no column 'sys': the rows have 'frage', 'antwort'"):
        run(tokenizer, path, columns=given | {"system": "sys"})
    with pytest.raises(DataError, match="no layout that is known: its rows have 'frage', 'antwort'"):
        run(tokenizer, path)


@pytest.mark.parametrize("answer", ['{"queue": "%s"}', '["%s"]', '[{"role": "%s"}]', '{"content": "%s"}'])
def test_answers_that_are_json_are_text(tokenizer: ByteBpeTokenizer, tmp_path: Path, answer: str) -> None:
    pairs_of = [{"prompt": f'{{"ask": "{q}"}}', "chosen": answer % a, "rejected": answer % q} for q, a in pairs()]
    corpus = run(tokenizer, write(tmp_path / "pairs.jsonl", pairs_of))
    assert corpus.kind == "preference"
    said = {e.chosen[0]["content"] for side in ("train", "selection", "held_out") for e in corpus.examples(side)}
    assert said == {row["chosen"] for row in pairs_of}
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs_of]
    chat = run(tokenizer, write(tmp_path / "rows.jsonl", rows))
    assert supervised(chat, tokenizer) == {f"{row['completion']}<|im_end|>" for row in rows}


def test_turns_that_a_table_holds_as_json_are_turns(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    def turn(role: str, content: str) -> str:
        return json.dumps([{"role": role, "content": content}])

    rows = [(turn("user", q), turn("assistant", a), turn("assistant", q)) for q, a in pairs()]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *rows])
    corpus = run(tokenizer, tmp_path / "pairs.csv")
    assert {e.chosen[0]["content"] for side in ("train", "selection", "held_out") for e in corpus.examples(side)} == {
        a for _, a in pairs()
    }


def test_held_out_rows_of_their_own(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    test = write(tmp_path / "test.jsonl", rows[:20])
    corpus = run(tokenizer, write(tmp_path / "train.jsonl", rows[15:]), held_out_from=test)
    assert corpus.held_out.num_rows == 20 and corpus.train.num_rows + corpus.selection.num_rows == 70
    assert corpus.held_out.origin(0) == "test.jsonl:1"


def test_held_out_rows_that_a_person_gives_all_stay(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    test = write(tmp_path / "test.jsonl", [*rows[:20], rows[0], rows[0]])
    corpus = run(tokenizer, write(tmp_path / "train.jsonl", [*rows[15:], rows[80]]), held_out_from=test)
    assert corpus.held_out.num_rows == 22 and corpus.train.num_rows + corpus.selection.num_rows == 70
    assert {reason: entry["count"] for reason, entry in corpus.ledger["dropped"].items()} == {
        "the same as held-out text, or nearly": 5,
        "exact duplicate": 1,
    }


def test_secrets_in_rows_are_named(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    rows[6]["completion"] += " token = 'abcdef0123456789abcdef'"
    corpus = run(tokenizer, write(tmp_path / "a.jsonl", rows))
    assert corpus.ledger["found_at"] == {"keys and passwords": ["a.jsonl:7"]}


def test_too_long_rows_are_counted_shown_and_refused(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    for row in rows[::10]:
        row["completion"] *= 40
    path = write(tmp_path / "a.jsonl", rows)
    longest = int(run(tokenizer, path).train.lengths.max())
    with pytest.raises(DataError) as caught:
        run(tokenizer, path, max_tokens=200)
    assert "9 of 90 rows are longer than 200 tokens: 9 would be left out" in caught.value.what
    assert f"--rows.max-tokens {longest} holds every row" in caught.value.fix
    asked = RowSettings(max_tokens=longest)
    with pytest.raises(DataError) as caught:
        prepare_rows([str(path)], tokenizer, asked, Events(), context=200)
    assert "longer than 200 tokens" in caught.value.what  # what is asked for is not more than the model reads
    assert caught.value.fix.startswith("the model reads 200 tokens at most") and "max-tokens" not in caught.value.fix
    corpus = run(tokenizer, path, max_tokens=200, most_too_long=0.1)
    assert corpus.ledger["kept"] == 81 and corpus.ledger["rows"]["too_long"]["dropped"] == 9
    assert sum(entry["count"] for entry in corpus.ledger["dropped"].values()) == 9
    assert supervised(corpus, tokenizer) == {f"{r['completion']}<|im_end|>" for i, r in enumerate(rows) if i % 10}


def test_a_file_without_rows_is_told(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "junk.jsonl"
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(DataError, match=r"there are no rows in what was given .*binary"):
        run(tokenizer, path)


def test_a_side_without_rows_is_told(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    path = write(tmp_path / "a.jsonl", rows)
    long = write(tmp_path / "long.jsonl", [{"prompt": "How long?", "completion": "very " * 400}])
    with pytest.raises(DataError, match="no rows are left to evaluate on") as caught:
        run(tokenizer, path, held_out_from=str(long), max_tokens=200, most_too_long=0.5)
    assert "--rows.max-tokens" in caught.value.fix


def test_templates_of_one_s_own_and_none(tokenizer: ByteBpeTokenizer, chats: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", [{"prompt": f"{q}\n", "completion": a} for q, a in pairs()])
    plain = run(tokenizer, rows, template="none")
    assert plain.template is None
    ids, mask = plain.train.document(0), plain.train.mask(0)
    assert ids[-1] == tokenizer.eos_id and tokenizer.decode(ids[mask == 0]).endswith("?\n")
    with pytest.raises(DataError, match="a conversation, and no template"):
        talks = [{"messages": [{**ASK, "content": q}, SAY, ASK, SAY]} for q, _ in pairs()]
        run(tokenizer, write(tmp_path / "b.jsonl", talks), template="none")
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    corpus = run(tokenizer, chats, template=str(own))
    assert corpus.template == own.read_text()
    assert supervised(corpus, tokenizer) == {f"{a}<|im_end|>" for _, a in pairs()}
    own.write_text("{% for m in messages %}{{ m.role.content.x }}{% endfor %}")
    with pytest.raises(DataError, match="the chat template refuses: 'str object' has no attribute"):
        run(tokenizer, chats, template=str(own))
    own.write_text("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match="the chat template is stopped: it takes more than"):
        run(tokenizer, chats, template=str(own))
    own.write_text("{% for m in messages %}")
    with pytest.raises(DataError, match="does not parse"):
        run(tokenizer, chats, template=str(own))


def test_tables(tokenizer: ByteBpeTokenizer, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs()]
    parquet.write_table(pa.table({"messages": turns, "n": list(range(90))}), tmp_path / "a.parquet")
    corpus = run(tokenizer, tmp_path / "a.parquet")
    assert supervised(corpus, tokenizer) == {f"{a}<|im_end|>" for _, a in pairs()}
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"Instruction": q, "Output": a} for q, a in pairs()]}))
    assert np.array_equal(run(tokenizer, tmp_path / "b.json").train.tokens, corpus.train.tokens)


def test_how_rows_were_understood_is_told(tokenizer: ByteBpeTokenizer, chats: Path) -> None:
    for _ in range(2):
        heard: list[Event] = []
        prepare_rows([str(chats)], tokenizer, RowSettings(), Events(None, [into(heard)]))
        (told,) = (event for event in heard if event["kind"] == "rows")
        use = {"layout": "messages", "columns": {"messages": "messages"}, "labels": ""}
        assert told["layouts"] == {"chats.jsonl": use}
        assert sum(told[side]["rows"] for side in ("train", "selection", "held_out")) == 90 and told["notes"] == []


@pytest.mark.parametrize(("rows", "judged"), [(9, 3), (60, 20), (120, 40), (399, 40), (400, 40), (5000, 500)])
def test_of_few_rows_as_many_judge_as_can_show_something(rows: int, judged: int) -> None:
    assert round(judging_share(rows, 0.1) * rows) == judged


def test_one_row_is_too_few_and_rows_that_are_alike_are_not_told_apart(
    tokenizer: ByteBpeTokenizer, tmp_path: Path
) -> None:
    row = {"prompt": "What colour is the sea?", "completion": "Blue, mostly."}
    with pytest.raises(DataError, match="^1 row is too few: training, selection and test need rows of their own"):
        run(tokenizer, write(tmp_path / "one.jsonl", [row]))
    with pytest.raises(DataError, match="^2 rows are too few: "):
        run(tokenizer, write(tmp_path / "two.jsonl", [row, {"prompt": "And the sun?", "completion": "Yellow."}]))
