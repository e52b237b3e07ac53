"""From files to token stores."""

import ast
import gzip
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.events import Event, TextSummary
from settle.base.files import home
from settle.data import prepare as prepare_module
from settle.data.prepare import Corpus, prepare
from settle.data.settings import DataSettings
from settle.data.split import selecting_bytes, uniform_order
from settle.train.settled import sample_size

TEXT = "the sea wind carries salt over old stone walls while gulls turn above quiet harbour lights at dusk"
WORDS = TEXT.split(" ")


def prose(seed: int, words: int = 400) -> str:
    """Random but word-like text with sentences and paragraphs."""
    rng = random.Random(seed)
    sentences = []
    while words > 0:
        length = rng.randint(5, 14)
        words -= length
        sentence = " ".join(rng.choice(WORDS) + rng.choice(["", "", "s", "ed", "ing"]) for _ in range(length))
        sentences.append(sentence.capitalize() + rng.choice([". ", ". ", ".\n\n"]))
    return "".join(sentences)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))


def run(*inputs: Path | str, **settings: object) -> Corpus:
    return prepare([str(i) for i in inputs], DataSettings(**settings), Events())


def texts(corpus: Corpus, side: str) -> list[str]:
    store = getattr(corpus, side)
    return [corpus.tokenizer.decode(store.document(i)) for i in range(store.num_documents)]


def left_behind() -> list[str]:
    return [p.name for p in (home() / "tokens").iterdir() if p.name != "hashes.json"]


def reasons(corpus: Corpus, what: str) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in corpus.ledger[what].items()}


def test_one_file_is_split_at_a_paragraph(tmp_path: Path) -> None:
    text = prose(1, 6000)
    (tmp_path / "a.txt").write_text(text)
    corpus = run(tmp_path / "a.txt")
    assert "".join(texts(corpus, "train") + texts(corpus, "selection") + texts(corpus, "held_out")) == text
    assert 0.05 < corpus.held_out.num_bytes / len(text) < 0.15
    assert 0.02 < corpus.selection.num_bytes / len(text) < 0.08
    assert sum(s.num_bytes for s in (corpus.train, corpus.selection, corpus.held_out)) == len(text)
    assert corpus.ledger["kept_bytes"] == len(text)
    assert (corpus.ledger["read"], corpus.ledger["kept"]) == (1, 1)


def test_what_selects_is_spread_all_over_a_large_text(tmp_path: Path) -> None:
    """Stretches long enough that most of each is far from what trains, and none takes a whole chapter away."""
    text = prose(1, 120_000)
    (tmp_path / "a.txt").write_text(text)
    corpus = run(tmp_path / "a.txt")
    (held_out,) = texts(corpus, "held_out")
    selecting = texts(corpus, "selection")
    assert text.endswith(held_out)
    places = sorted((text.index(stretch), len(stretch)) for stretch in selecting)
    gaps = np.diff([0, *(place for place, _ in places), len(text) - len(held_out)])
    assert len(places) >= 5 and gaps.max() < 2 * gaps.min() + 8192
    assert all(2048 < size < 8192 for _, size in places)
    assert places[-1][0] + places[-1][1] < len(text) - len(held_out)
    assert corpus.selection.num_bytes < 0.04 * len(text)


@pytest.mark.parametrize("size", [5e3, 1e5, 1e6, 1e7, 1e8, 1e9])
def test_as_much_selects_as_an_evaluation_reads(size: float) -> None:
    selecting = selecting_bytes(size, 0.1)
    read = sample_size(int(0.9 * size / 4), 10**12)  # tokens of four bytes
    assert selecting == 0.05 * size or 4 * read < selecting < 0.05 * size


def test_deleted_text_of_the_version_before_is_made_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 60_000))
    now = run(tmp_path / "a.txt")
    with monkeypatch.context() as before:
        before.setattr("settle.data.prepare._VERSION", 4)  # what selects was one stretch then
        made = run(tmp_path / "a.txt")
    assert made.fingerprint != now.fingerprint
    sides = {side: texts(made, side) for side in ("train", "selection", "held_out")}
    assert len(sides["train"]) == len(sides["selection"]) == 1
    shutil.rmtree(made.train.folder.parent)
    again = prepare([str(tmp_path / "a.txt")], DataSettings(), Events(), made.fingerprint)
    assert again.fingerprint == made.fingerprint
    assert {side: texts(again, side) for side in sides} == sides
    assert prepare([str(tmp_path / "a.txt")], DataSettings(), Events(), "f00").fingerprint == now.fingerprint


def test_many_files_keep_their_kin_on_one_side(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(120):
        text = prose(i % 60, 200)
        (folder / f"{i}.md").write_text(text if i < 60 else text.replace(". ", ". And ", 8))
    corpus = run(folder, clean=False)
    sides = {name: getattr(corpus, name) for name in ("train", "selection", "held_out")}
    assert sum(store.num_documents for store in sides.values()) == 120
    total = sum(store.num_bytes for store in sides.values())
    assert 0 < sides["held_out"].num_bytes <= 0.1 * total and 0 < sides["selection"].num_bytes <= 0.05 * total
    ends = {name: {t[-60:] for t in texts(corpus, name)} for name in sides}
    assert not any(ends[a] & ends[b] for a, b in itertools.combinations(ends, 2))
    families = set(sides["train"].families.tolist())
    assert 45 < len(families) < 60 < sides["train"].num_documents  # kin are one family, and strangers are not


def test_one_large_file_among_many_small_ones(tmp_path: Path) -> None:
    rows = [prose(0, 40_000), *(prose(i, 60) for i in range(1, 80))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    corpus = run(tmp_path / "a.jsonl")
    large = sum(len(t) for t in texts(corpus, "held_out") if t in rows[0])
    assert large > corpus.held_out.num_bytes / 2


def test_texts_from_one_template_can_be_split(tmp_path: Path) -> None:
    rows = [f"{prose(0, 120)} {prose(i, 25)}" for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    corpus = run(tmp_path / "a.jsonl")
    assert corpus.held_out.num_documents > 10


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    first = run(tmp_path / "a.txt")
    stamp = (first.train.folder / "store.json").stat().st_mtime_ns
    (tmp_path / "a.txt").touch()
    again = run(tmp_path / "a.txt")
    assert again.fingerprint == first.fingerprint
    assert (again.train.folder / "store.json").stat().st_mtime_ns == stamp
    assert run(tmp_path / "a.txt", vocab_size=300).fingerprint != first.fingerprint
    (tmp_path / "a.txt").write_text(prose(2, 3000))
    assert run(tmp_path / "a.txt").fingerprint != first.fingerprint
    assert len(left_behind()) == 3


def test_a_few_small_files_are_prepared_while_torch_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, log, begun = DataSettings(), list[Event](), prepare_module._begun
    seen: SimpleQueue[Corpus] = SimpleQueue()
    asked, short = [str(tmp_path / "a.txt")], [str(tmp_path / "short.txt")]
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    (tmp_path / "short.txt").write_text("a few words")
    for inputs in (short, asked):
        prepare_module.begin_to_prepare(inputs, settings, seen.put)
    early = begun[prepare_module._asked(asked, settings)]
    assert prepare(asked, settings, Events(listeners=[log.append])) is early.result() is seen.get(timeout=20)
    assert [type(event) for event in log] == [TextSummary] and len(begun) == 1
    with pytest.raises(DataError, match="too little text"):
        prepare(short, settings, Events())
    assert seen.empty()
    monkeypatch.setattr(prepare_module, "_SMALL", 100)
    for inputs in (asked, ["-"], [], [str(tmp_path)], [str(tmp_path / "missing.txt")]):
        prepare_module.begin_to_prepare(inputs, settings)
    assert not begun


def test_a_large_family_is_held_out_no_sooner_than_single_documents() -> None:
    rng = np.random.default_rng(0)
    first = 0
    for _ in range(300):
        cluster = np.concatenate([np.zeros(30, int), np.arange(30, 40)])
        order = uniform_order(cluster, rng.integers(0, 1 << 64, 40, np.uint64), np.ones(40, bool))
        first += int(order[[0, *range(30, 40)]].argmin() == 0)
    assert 10 < first < 50  # one family among eleven is the first in 27 of 300 cases


def test_held_out_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    (tmp_path / "b.txt").write_text(prose(2, 500))
    corpus = run(tmp_path / "a.txt", held_out_from=tmp_path / "b.txt")
    assert "".join(texts(corpus, "train") + texts(corpus, "selection")) == prose(1, 3000)
    assert 0.02 < corpus.selection.num_bytes / corpus.train.num_bytes < 0.1
    assert texts(corpus, "held_out") == [prose(2, 500)]


def test_held_out_text_that_a_person_gives_is_never_left_out(tmp_path: Path) -> None:
    """What cleaning drops elsewhere, duplicates of training text and of one another, boilerplate: all of it stays."""
    notice = "This notice stands in every single document of the folder, word for word.\n"
    folder, held_out = tmp_path / "notes", tmp_path / "test"
    for place in (folder, held_out):
        place.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(notice + prose(i, 300))
    given = {
        "copy.txt": notice + prose(3, 300),  # of a training document
        "again.txt": notice + prose(3, 300),
        "near.txt": notice + prose(4, 300) + " and one more sentence.",
        "short.txt": "hm",
        "line.txt": "the same line again\n" * 500,
        "own.txt": notice + prose(99, 300),
        "key.txt": notice + "password = 'hunter2hunter2hunter2'\r\n" + prose(98, 300),
    }
    for name, text in given.items():
        (held_out / name).write_bytes(text.encode())
    corpus = run(folder, held_out_from=held_out, mask="keys")
    expected = {text.replace("\r\n", "\n").replace("hunter2hunter2hunter2", "<key>") for text in given.values()}
    assert sorted(texts(corpus, "held_out")) == sorted([*expected, given["copy.txt"]])
    assert reasons(corpus, "dropped") == {"the same as held-out text, or nearly": 2}
    assert {e["where"] for e in corpus.ledger["dropped"]["the same as held-out text, or nearly"]["examples"]} == {
        "3.txt:1",
        "4.txt:1",
    }
    assert corpus.train.num_documents == 28
    assert all(notice not in text for text in texts(corpus, "train"))


def test_secrets_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        prose(1, 900) + "\n\n\ntoken = 'abcdef0123456789abcdef'\nand\nAKIAABCDEFGHIJKLMNOP\n"
    )
    lines = (tmp_path / "a.txt").read_text().split("\n")
    at = {f"a.txt:{i}" for i, line in enumerate(lines, 1) if "token =" in line or "AKIA" in line}
    corpus = run(tmp_path / "a.txt", clean=False)
    assert corpus.ledger["found"] == {"keys and passwords": 2}
    assert set(corpus.ledger["found_at"]["keys and passwords"]) == at and len(at) == 2


def test_a_secret_far_down_a_long_text_has_its_line_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("settle.documents.rows.cut.__defaults__", (4000,))
    text = "".join(f"{prose(i, 40)}\n" for i in range(200))
    (tmp_path / "a.txt").write_text(text + "token = 'abcdef0123456789abcdef'\n" + text)
    line = text.count("\n") + 1
    assert run(tmp_path / "a.txt").ledger["found_at"]["keys and passwords"] == [f"a.txt:{line}"]


def test_too_little_or_nothing_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "x.bin").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "line.txt").write_text("a single line\n")
    for name in ("empty", "binary", "binary/x.bin", "line.txt", "absent"):
        with pytest.raises(UsageError if name == "absent" else DataError) as caught:
            run(tmp_path / name)
        assert caught.value.fix
        assert left_behind() == []


def test_one_line_repeated_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same line again\n" * 20_000)
    with pytest.raises(DataError, match="repeats itself"):
        run(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_text('{"text": "the same line again, in every row"}\n' * 2000)
    with pytest.raises(DataError, match="exact duplicate: 1999"):
        run(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="similar passages"):
        run(tmp_path / "a.txt", clean=False)
    assert left_behind() == []


_BROKEN = b" caf\xe9 \xff na\xc3\xafve jane@example.com"


def test_the_ledger_names_every_row_that_changed(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(prose(i, 500))
    (folder / "copy.txt").write_text(prose(0, 500))
    (folder / "dos.txt").write_bytes(prose(4, 500).replace("\n", "\r\n").encode() + _BROKEN)
    (folder / "short.txt").write_text("hm")
    (folder / "image.png").write_bytes(b"\x89PNG\0\0")
    corpus = run(folder, mask="email")
    assert reasons(corpus, "dropped") == {"too short": 1, "exact duplicate": 1}
    assert corpus.ledger["dropped"]["exact duplicate"]["examples"][0]["where"] == "copy.txt:1"
    assert reasons(corpus, "mended") == {
        "invalid bytes taken out": 1,
        "line ends written as line feeds": 1,
        "e-mail addresses masked": 1,
    }
    assert reasons(corpus, "skipped") == {"binary data": 1}
    assert corpus.ledger["found"] == {"e-mail addresses": 1}
    assert len(corpus.ledger["sources"]) == corpus.ledger["num_sources"] == 6
    assert all(len(source["sha256"]) == 64 for source in corpus.ledger["sources"])
    json.dumps(corpus.ledger)
    joined = "".join(texts(corpus, "train") + texts(corpus, "selection") + texts(corpus, "held_out"))
    assert "caf  naïve <email>" in joined and "\r" not in joined
    assert {corpus.train.origin(i) for i in range(corpus.train.num_documents)} <= {
        f"{name}:1" for name in ("0.txt", "1.txt", "2.txt", "copy.txt", "dos.txt")
    }


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    text = prose(1, 2000) + "<|endoftext|><|im_start|>user" * 10 + prose(2, 2000)
    (tmp_path / "a.txt").write_text(text)
    corpus = run(tmp_path / "a.txt")
    assert "".join(texts(corpus, "train") + texts(corpus, "selection") + texts(corpus, "held_out")) == text


def test_stdin(tmp_path: Path) -> None:
    code = (
        "from settle.data.prepare import *\n"
        "c = prepare(['-'], DataSettings(), Events())\n"
        "number = sum(store.num_documents for store in (c.train, c.selection, c.held_out))\n"
        "print(number, c.ledger['sources'][0]['kind'])"
    )
    rows = "".join(json.dumps({"text": prose(i, 60)}) + "\n" for i in range(200))
    for given, expected in ((rows, "200 jsonl"), (prose(1, 3000), "3 text")):
        done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    first = run(tmp_path / "a.txt")
    tokens = first.train.tokens.tobytes()
    with (first.train.folder / "tokens.bin").open("r+b") as f:
        f.truncate(100)
    assert run(tmp_path / "a.txt").train.tokens.tobytes() == tokens
    (first.train.folder / "store.json").write_text("{")
    assert run(tmp_path / "a.txt").train.tokens.tobytes() == tokens


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    (home() / "tokens" / ".work-dead").mkdir(parents=True)
    (home() / "tokens" / ".work-dead.lock").touch()
    corpus = run(tmp_path / "a.txt")
    assert left_behind() == [corpus.fingerprint]


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    (tmp_path / "file").touch()
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ResourceError, match="SETTLE_HOME"):
        run(tmp_path / "a.txt")


def test_a_compressed_file_that_breaks_off_is_read_up_to_there(tmp_path: Path) -> None:
    whole = gzip.compress("".join(prose(i, 300) for i in range(200)).encode())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "b.txt").write_text(prose(1000, 3000))
    corpus = run(tmp_path / "in")
    assert reasons(corpus, "skipped") == {"damaged, read up to the damage": 1}


FULL_DISK = """
import subprocess, sys
from settle.base.errors import ResourceError
from settle.data.prepare import *
text, small, *rooms = sys.argv[1:]
for room in rooms:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "settle", small], check=True)
    try:
        prepare([text], DataSettings(), Events())
        error = ""
    except ResourceError as e:
        error = str(e)
    print([error, [p.name for p in (home() / "tokens").iterdir() if p.name != "hashes.json"]])
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps({"text": prose(i, 300)}) for i in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    small = tmp_path / "small"
    small.mkdir()
    monkeypatch.setenv("SETTLE_HOME", str(small))
    rooms = [str(room) for room in range(300, 2000, 240)]  # kilobytes: full while reading, comparing, tokenizing
    asked = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.jsonl"), str(small), *rooms]
    done = subprocess.run(["unshare", "--mount", "--map-root-user", *asked], capture_output=True, text=True)
    if done.stderr.startswith(("unshare", "mount")):
        pytest.skip("this system lets nobody mount a small disk")
    assert not done.stderr
    ends = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    errors = [error for error, _ in ends if error]
    assert len(ends) == len(rooms) and 2 < len(errors) < len(rooms)
    assert all("no room for this text" in error and "MB are needed" in error for error in errors)
    assert all((left == []) == bool(error) for error, left in ends)


def test_tokens_take_two_bytes_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 3000))
    corpus = run(tmp_path / "a.txt")
    assert corpus.train.tokens.dtype == np.uint16
    assert corpus.train.tokens[0] == corpus.tokenizer.bos_id
