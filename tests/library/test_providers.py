import datetime
import hashlib

import pytest

from settle.base.errors import DataError
from settle.cli import main
from settle.library.update import SHIPPED, providers


def test_the_shipped_table_names_a_page_and_a_day_for_each_plan(home):
    table = providers()
    assert len({(t.name, t.plan) for t in table.provider}) == len(table.provider) >= 5
    assert all(t.read <= table.date for t in table.provider)
    assert all(t.note for t in table.provider if not t.verified)  # what was not read, and who says so


def test_an_unverified_row_is_shown_as_such(home, capsys):
    assert main(["runs", "audit", "providers"]) == 0
    out, err = capsys.readouterr()
    deepseek = next(line for line in out.splitlines() if line.startswith("DeepSeek"))
    assert "unverified" in deepseek and "days old" in err


def test_terms_that_were_read_long_ago_are_warned_of(home, capsys, monkeypatch):
    def said(day):
        for module in ("settle.base.files.dated_file", "settle.library.update"):
            monkeypatch.setattr(f"{module}.today", lambda: day)
        assert main(["runs", "audit", "providers"]) == 0
        return capsys.readouterr()

    read, number = sorted(t.read for t in providers().provider), len(providers().provider)
    assert "days ago" not in said(read[0] + datetime.timedelta(days=180)).err
    out, err = said(read[-1] + datetime.timedelta(days=181))
    assert f"{number} of {number} pages were read more than 180 days ago" in err and "out of date" in out


def test_a_newer_table_replaces_it(home, tmp_path, capsys):
    newer = tmp_path / "providers.toml"
    day = datetime.date.today().isoformat()
    row = SHIPPED.read_text(encoding="utf-8").split("[[provider]]")[1].replace("up to 30 days", "for ever")
    newer.write_text(f"date = {day}\n[[provider]]{row}", encoding="utf-8")
    digest = hashlib.sha256(newer.read_bytes()).hexdigest()
    assert main(["models", "update", str(newer), "--sha256", digest]) == 0
    if providers().date > datetime.date(2026, 11, 28):
        assert [t.retention[:8] for t in providers().provider] == ["for ever"]
    newer.write_text(f"date = {day}\n[[provider]]{row.replace('https:', 'ftp:')}", encoding="utf-8")
    digest = hashlib.sha256(newer.read_bytes()).hexdigest()
    assert main(["models", "update", str(newer), "--sha256", digest]) == 1
    assert "provider.OpenAI.link" in capsys.readouterr().err


def test_a_broken_table_is_said_to_be(home, monkeypatch, tmp_path):
    (tmp_path / "x.toml").write_text("date = 2026-01-01\nprovider = 3\n")
    monkeypatch.setattr("settle.library.update.SHIPPED", tmp_path / "x.toml")
    with pytest.raises(DataError, match="no table of providers"):
        providers()
