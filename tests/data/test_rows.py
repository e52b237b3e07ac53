"""From files of examples to row stores and batches."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.base.events import Events
from settle.data.rows.batches import RowBatches, held_out_rows
from settle.data.rows.prepare import RowCorpus, prepare_rows, prepared_rows
from settle.data.settings import RowSettings
from settle.data.tokenizer import Tokenizer

COLOURS = ("red", "green", "blue", "grey", "black", "white", "brown", "pink", "gold", "teal")
THINGS = ("a stone", "the sea", "an old wall", "her coat", "that door", "my lamp", "their boat", "the hill", "a bird")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    words = [f"What colour is {thing}? It is {colour}." for thing in THINGS for colour in COLOURS]
    return Tokenizer.train(words, 400, tmp_path_factory.mktemp("tokenizer"))


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


def run(tokenizer: Tokenizer, *inputs: Path, **settings: Any) -> RowCorpus:
    return prepare_rows([str(i) for i in inputs], tokenizer, RowSettings(**settings), Events())


def supervised(corpus: RowCorpus, tokenizer: Tokenizer) -> set[str]:
    """What is learned, of both sides, with the end of the turn written out."""
    said = set()
    for store in (corpus.train, corpus.held_out):
        for i in range(store.num_documents):
            ids = store.document(i)[store.mask(i) == 1]
            said.add("".join(tokenizer.tokens[t] if t == tokenizer.turn_end_id else tokenizer.decode([t]) for t in ids))
    return said


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs()]
    return write(tmp_path / "chats.jsonl", [{"messages": m} for m in turns])


def test_messages_are_supervised_to_the_token(tokenizer: Tokenizer, chats: Path) -> None:
    corpus = run(tokenizer, chats)
    assert corpus.kind == "chat" and corpus.template == tokenizer.chat_template
    assert supervised(corpus, tokenizer) == {f"{a}<|im_end|>" for _, a in pairs()}
    assert corpus.train.num_rows + corpus.held_out.num_rows == 90 == corpus.ledger["kept"]
    assert 5 <= corpus.held_out.num_rows <= 9
    assert corpus.ledger["layouts"]["chats.jsonl"] == {"layout": "messages", "columns": {"messages": "messages"}}
    assert not corpus.train.mask(0)[0]
    assert len(corpus.previews) == 5
    for preview in corpus.previews:
        (question, no), (answer, yes) = preview.pieces
        assert (no, yes) == (False, True)
        assert question.endswith("<|im_start|>assistant\n") and answer.endswith("<|im_end|>")
    (example, *others) = corpus.examples("held_out")
    assert len(others) + 1 == corpus.held_out.num_rows and example.messages[1]["role"] == "assistant"


def test_the_same_rows_however_they_are_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    questions = list(pairs())
    ways = {
        "prompt": [{"prompt": q, "completion": a} for q, a in questions],
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
    csv = tmp_path / "table.csv"
    csv.write_text("frage,antwort,n\n" + "".join(f'"{q}","{a}",{i}\n' for i, (q, a) in enumerate(questions)))
    found.append(run(tokenizer, csv, columns={"prompt": "frage", "completion": "antwort"}))
    for corpus in found:
        assert np.array_equal(corpus.train.tokens, found[0].train.tokens)
        assert np.array_equal(corpus.train.supervised, found[0].train.supervised)
        assert np.array_equal(corpus.held_out.tokens, found[0].held_out.tokens)


def test_a_corpus_is_made_once(tokenizer: Tokenizer, chats: Path) -> None:
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


def test_batches_are_whole_rows_and_a_pure_function(tokenizer: Tokenizer, chats: Path) -> None:
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
def test_broken_and_mixed_rows_are_refused_by_number(tokenizer: Tokenizer, chats: Path, reason: str) -> None:
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


def test_unknown_columns_and_mixed_kinds(tokenizer: Tokenizer, chats: Path, tmp_path: Path) -> None:
    strange = write(tmp_path / "strange.jsonl", [{"frage": "a", "antwort": "b"}] * 3)
    with pytest.raises(DataError, match="its rows have 'frage', 'antwort'"):
        run(tokenizer, strange)
    text = write(tmp_path / "text.jsonl", [{"text": f"{q} {a}"} for q, a in pairs()])
    with pytest.raises(DataError, match="text.jsonl holds text rows, the files before it chat rows"):
        run(tokenizer, chats, text)
    with pytest.raises(DataError, match="empty.jsonl holds no rows"):
        run(tokenizer, write(tmp_path / "empty.jsonl", []))


def test_a_turn_cannot_write_special_tokens(tokenizer: Tokenizer, chats: Path) -> None:
    lines = chats.read_text().splitlines()
    lines[8] = json.dumps({"messages": [{"role": "user", "content": "a<|im_end|>b"}, SAY]})
    chats.write_text("\n".join(lines))
    with pytest.raises(DataError, match="1 row cannot be used: a special token of the model within a turn: .*:9"):
        run(tokenizer, chats)
