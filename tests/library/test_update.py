"""The catalogue is replaced by a file of known hash only, and what is wrong changes nothing."""

import datetime
import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from settle.base.files import dated_file
from settle.cli import main
from settle.library import catalogue as module
from settle.library.catalogue import catalogue_file

SHIPPED = Path(module.__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
TOMORROW = datetime.date.today() + datetime.timedelta(days=1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    catalogue_file.cache_clear()
    yield tmp_path / "home"
    catalogue_file.cache_clear()


@pytest.fixture
def newer(tmp_path, monkeypatch):
    """The catalogue of tomorrow with one model renamed, and a clock that says the day after."""

    monkeypatch.setattr(dated_file, "today", lambda: TOMORROW)
    path = tmp_path / "new.toml"
    text = re.sub(r"(?m)^date = .*$", f"date = {TOMORROW}", SHIPPED, count=1)
    path.write_text(text.replace('name = "llama-3.1-8b"', 'name = "llama-3.1-8b-renamed"'))
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names():
    return {model.name for model in catalogue_file().known}


def test_a_newer_catalogue_of_the_right_hash_is_used(home, newer, capsys):
    assert main(["models", "update", str(newer), "--sha256", digest(newer)]) == 0
    assert "llama-3.1-8b-renamed" in names()


def test_a_wheel_that_holds_one_file_is_as_good(home, newer, tmp_path):
    wheel = tmp_path / "data-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(newer, "settle_data/catalogue.toml")
    assert main(["models", "update", str(wheel), "--sha256", digest(wheel)]) == 0
    assert "llama-3.1-8b-renamed" in names()


def test_without_a_hash_the_hash_is_said_and_nothing_happens(home, newer, capsys):
    assert main(["models", "update", str(newer)]) == 2
    assert digest(newer) in capsys.readouterr().err.replace("\n", "").replace(" ", "") and not (home / "data").exists()


@pytest.mark.parametrize("spoil", ["hash", "row", "toml", "future", "kind"])
def test_what_is_wrong_changes_nothing(home, newer, spoil, capsys):
    before = names()
    text = newer.read_text()
    if spoil == "row":
        newer.write_text(text.replace("layers = 32", "layers = -32", 1))
    elif spoil == "toml":
        newer.write_text(text[:5000])
    elif spoil == "future":
        newer.write_text(re.sub(r"(?m)^date = .*$", "date = 2999-01-01", text, count=1))
    elif spoil == "kind":
        newer.write_text("date = 2026-01-01\n")
    sha256 = "0" * 64 if spoil == "hash" else digest(newer)
    assert main(["models", "update", str(newer), "--sha256", sha256]) == 1
    catalogue_file.cache_clear()
    assert names() == before and not (home / "data").exists()


@pytest.mark.parametrize(
    ("old", "spoiled", "said"),
    [
        (r'source = "its model card[^"]*", ', "", "smollm2-135m.quality.0.source: Field required"),
        (r'kind = "self-reported"', 'kind = "hearsay"', "quality.0.kind: Input should be 'independent'"),
        (r"value = 29\.9", "value = nan", "smollm2-135m.quality.0.value"),
        (r"date = 2024-10-31 }", "date = 2999-01-01 }", "of smollm2-135m is dated 2999-01-01, after the file"),
    ],
)
def test_a_broken_quality_number_is_refused_by_the_name_of_its_model(home, newer, old, spoiled, said, capsys):
    head, row, tail = re.split(r'(?m)^(.*name = "smollm2-135m",.*)$', newer.read_text())
    head, tail = head[: head.index("known = [\n") + 10], tail[tail.index("\n]\n") :]  # the other rows take long to read
    newer.write_text(head + re.sub(old, spoiled, row, count=1) + tail)
    assert main(["models", "update", str(newer), "--sha256", digest(newer)]) == 1
    assert said in " ".join(capsys.readouterr().err.split()) and not (home / "data").exists()


def test_every_published_number_has_an_address_and_the_file_stays_small(home):
    numbers = [number for model in catalogue_file().known for number in model.quality]
    assert len(numbers) > 100 and all("https://" in number.source for number in numbers)
    assert all(len(model.quality) <= 4 for model in catalogue_file().known) and len(SHIPPED.encode()) <= 300_000


def test_an_update_that_was_changed_afterwards_is_refused(home, newer):
    assert main(["models", "update", str(newer), "--sha256", digest(newer)]) == 0
    place = home / "data" / "catalogue.toml"
    place.write_text(place.read_text() + "\n")
    catalogue_file.cache_clear()
    assert main(["models", "fit", "llama-3.2-1b", "--machine", "rtx 3060"]) == 1


def test_old_numbers_are_marked():
    assert "out of date" in dated_file.age(datetime.date.today() - datetime.timedelta(days=181))
    assert "out of date" not in dated_file.age(datetime.date.today() - datetime.timedelta(days=180))
