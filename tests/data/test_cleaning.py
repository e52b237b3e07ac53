"""Each cleaning pass does what it says, and leaves poetry and source code alone."""

import base64
import inspect
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest

from settle.base.registry import part, parts
from settle.data import prepare as some_code
from settle.data.cleaning import Sweep
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from tests.data.test_prepare import prose

POEM = textwrap.dedent(
    """\
    Tyger Tyger, burning bright,
    In the forests of the night;
    What immortal hand or eye,
    Could frame thy fearful symmetry?

    Tyger Tyger burning bright,
    In the forests of the night:
    What immortal hand or eye,
    Dare frame thy fearful symmetry?
    """
)
HARMLESS = [
    POEM,
    POEM * 3,
    inspect.getsource(some_code),
    "def f(x):\n\treturn x\n",
    "Ein Bär, ça va, 日本語、한국어 👩‍👩‍👧",
    "x = 1\n" * 8,
]


class Notes(list[tuple[str, str, int]]):
    def __call__(self, what: str, reason: str, count: int, at: int = 0) -> None:
        self.append((what, reason, count))


def start(name: str, **settings: object) -> Sweep:
    return part("data/cleaning", name)(**settings).start()  # type: ignore[attr-defined, no-any-return]


def mend(name: str, text: str, **settings: object) -> tuple[str | None, Notes]:
    notes = Notes()
    return start(name, **settings).mend(text, notes), notes


def spool(folder: Path, texts: list[str]) -> DocumentBuffer:
    writer = BufferWriter(folder)
    for row, text in enumerate(texts, 1):
        writer.append(text, 0, row)
    return writer.close()


@pytest.mark.parametrize("name", sorted(parts("data/cleaning")))
@pytest.mark.parametrize("text", HARMLESS)
def test_what_people_write_passes_unchanged(name: str, text: str) -> None:
    mended, notes = mend(name, text)
    assert mended == text
    assert [n for n in notes if n[0] != "found"] == []


def test_encoding() -> None:
    assert (
        mend("characters", "\ufeffcaf\ufffde au lait, s'il vous pla\u00eet")[0] == "cafe au lait, s'il vous pla\u00eet"
    )
    assert mend("characters", "smile \ud83d\ude00 or half \ud83d of one, and more words")[0] == (
        "smile \U0001f600 or half  of one, and more words"
    )
    mended, notes = mend("characters", "\ufffd" * 50 + "abc")
    assert mended is None and notes == [("dropped", "no text in a known encoding", 1)]


def test_control_characters() -> None:
    mended, notes = mend("characters", "one\r\ntwo\rthree\x00 \x1b[31mred\x1b[0m\tfour\x0c")
    assert mended == "one\ntwo\nthree red\tfour"
    assert ("mended", "control characters taken out", 4) in notes
    assert mend("characters", "\x01\x02\x03abc\x04")[0] is None


def test_too_short() -> None:
    assert mend("content", " \n ")[1] == [("dropped", "empty", 1)]
    assert mend("content", "hi there")[1] == [("dropped", "too short", 1)]


def test_gibberish() -> None:
    rng = random.Random(0)
    noise = "".join(chr(rng.randrange(33, 127)) for _ in range(5000))
    encoded = base64.b64encode(rng.randbytes(30_000)).decode()
    for text, reason in (
        (noise, "random characters"),
        (encoded, "random characters"),
        ("hello world\n" * 5000, "repeats itself"),
        ("a" * 2_000_000, "repeats itself"),
        (rng.randbytes(20_000).hex(), "encoded data without words"),
    ):
        mended, notes = mend("content", text)
        assert mended is None and notes == [("dropped", reason, 1)]


def test_gibberish_spares_every_script_and_the_whole_standard_library() -> None:
    for text in ("".join(chr(0x4E00 + 37 * i % 20000) for i in range(3000)), prose(1, 5000)):
        assert mend("content", text)[0] == text
    for file in sorted(Path(inspect.__file__).parent.glob("*.py")):
        text = file.read_text("utf-8")
        assert mend("content", text)[0] == text, file


def test_secrets_are_found_and_masked_only_when_asked() -> None:
    key = "sk-" + "a1B2" * 8
    text = f"Write to jane.doe+x@mail.example.co.uk from 93.184.216.34 with {key}.\napi_key = 'Zx81' + 'no'\n"
    mended, notes = mend("secrets", text)
    assert mended == text
    assert sorted(notes) == [
        ("found", "IP addresses", 1),
        ("found", "e-mail addresses", 1),
        ("found", "keys and passwords", 1),
    ]
    assert mend("secrets", text, mask="all")[0] == ("Write to <email> from <ip> with <key>.\napi_key = 'Zx81' + 'no'\n")
    assert mend("secrets", text, mask="email")[0] == text.replace("jane.doe+x@mail.example.co.uk", "<email>")


@pytest.mark.parametrize(
    "text",
    [
        "@property\n@functools.wraps(f)\n@app.route('/')",
        "version 1.2.3.4.5 or v10.2.3.4, local 127.0.0.1, 192.168.1.1, 0.0.0.0, 999.1.1.1",
        "std::vector, a::b, 12:30:45, 2024::x, C++",
        "token = 'the_name_of_a_token'; key = \"short1\"",
        "a risk-assessment-of-something-long-and-boring, git@ nothing",
    ],
)
def test_no_secret_is_seen_where_there_is_none(text: str) -> None:
    assert mend("secrets", text, mask="all") == (text, [])


def test_other_secrets() -> None:
    for secret, placeholder in (
        ("2606:2800:220:1:248:1893:25c8:1946", "<ip>"),
        ("2001:4860:4860::8888", "<ip>"),
        ("AKIA" + "A1B2C3D4E5F6G7H8", "<key>"),
        ("-----BEGIN RSA PRIVATE KEY-----\n" + "Ab1+/" * 30 + "\n-----END RSA PRIVATE KEY-----", "<key>"),
    ):
        assert mend("secrets", f"see {secret} there", mask="all")[0] == f"see {placeholder} there"
    assert mend("secrets", "PASSWORD = 'correct1horse2battery'", mask="keys")[0] == "PASSWORD = '<key>'"


def test_boilerplate_goes_and_code_stays() -> None:
    licence = (
        "# Licensed under the Apache License, Version 2.0 (the License);\n"
        "# you may not use this file except in compliance with the License.\n"
        "# You may obtain a copy of the License at\n"
        "#     http://www.apache.org/licenses/LICENSE-2.0\n"
    )
    common = "from __future__ import annotations\nimport os\nimport sys\nimport numpy as np\n\n"
    ending = '\n\nif __name__ == "__main__":\n    main()\n'
    documents = [licence + common + f"def number_{i}():\n    return {i}\n" + ending for i in range(60)]
    sweep, notes = start("boilerplate"), Notes()
    assert [sweep.mend(d, notes) for d in documents] == documents
    assert sweep.revises()
    revised = [sweep.revise(d, notes) for d in documents]
    assert revised == [d.removeprefix(licence) for d in documents]
    assert notes == [("mended", "boilerplate lines taken out", 4)] * 60
    assert sweep.revise(licence, notes) is None


def test_boilerplate_needs_many_documents() -> None:
    sweep, notes = start("boilerplate"), Notes()
    for _ in range(15):
        sweep.mend(POEM, notes)
    assert not sweep.revises()


def test_exact_duplicates(tmp_path: Path) -> None:
    documents = spool(tmp_path / "s", ["one text", "another", "one text", "", "", "one text."])
    _, repeated = start("exact_duplicates").repeats(documents)  # type: ignore[misc]
    assert repeated.tolist() == [False, False, True, False, True, False]


def test_near_duplicates(tmp_path: Path) -> None:
    texts = [prose(i, 300) for i in range(40)]
    nearly = [t.replace("harbour", "haven", 2) for t in texts[:10]]
    _, repeated = start("near_duplicates").repeats(spool(tmp_path / "s", texts + nearly))  # type: ignore[misc]
    assert np.flatnonzero(repeated).tolist() == list(range(40, 50))
