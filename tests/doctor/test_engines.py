"""llama.cpp in other versions: wheels that lie in settle's home are found, unpacked once, and refused when damaged."""

import zipfile

import pytest

from settle.base.errors import FormatError, UsageError
from settle.doctor.checks.answers.other_engine import (
    PACKAGE,
    engine_versions,
    engines_folder,
    installed_engine,
    unpacked_engine,
)


@pytest.fixture
def wheels(home):
    engines_folder().mkdir()
    for version in ("2026.10.1", "2026.9.200"):
        with zipfile.ZipFile(engines_folder() / f"{PACKAGE}-{version}-cp310-abi3-any.whl", "w") as wheel:
            wheel.writestr(f"{PACKAGE}/__init__.py", f"__version__ = {version!r}")
    return engines_folder()


def test_versions_are_in_the_order_of_their_numbers(wheels):
    assert engine_versions() == ["2026.9.200", "2026.10.1"]


def test_there_are_none(home):
    assert engine_versions() == []


def test_one_is_unpacked_once_and_the_installed_one_is_none(wheels):
    folder = unpacked_engine("2026.9.200")
    assert (folder / PACKAGE / "__init__.py").read_text() == "__version__ = '2026.9.200'"
    (wheels / f"{PACKAGE}-2026.9.200-cp310-abi3-any.whl").unlink()
    assert unpacked_engine("2026.9.200") == folder and unpacked_engine(installed_engine()) is None


def test_one_that_is_not_here_says_how_to_get_it(wheels):
    with pytest.raises(UsageError, match=f"pip download .*{PACKAGE}==2026.1.1"):
        unpacked_engine("2026.1.1")


def test_a_damaged_wheel_leaves_nothing_behind(wheels):
    (wheels / f"{PACKAGE}-2026.10.1-cp310-abi3-any.whl").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(FormatError, match="damaged"):
        unpacked_engine("2026.10.1")
    assert not (wheels / "2026.10.1").exists()
