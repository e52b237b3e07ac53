"""Every command: it says what it does, and its help shows every option."""

import pytest

from settle.base.choice import family_of
from settle.base.settings import group_of
from settle.cli import main
from settle.commands import Command


@pytest.mark.parametrize("name", Command.part_names())
def test_the_help_of_a_command_shows_every_option(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main([name, "--help-all"]) == 0
    shown = capsys.readouterr().out
    command = Command.part(name)
    first_line = (command.__doc__ or "").strip().splitlines()[0].replace("`", "")
    assert first_line and first_line in " ".join(shown.split())
    for setting, field in command.model_fields.items():
        option = f"--{setting.replace('_', '-').rstrip('-')}"
        if setting in command.positional:
            assert setting.upper() in shown
        elif group := group_of(field.annotation):
            assert all(f"{option}.{inner.replace('_', '-')}" in shown for inner in group.model_fields)
        else:
            assert option in shown
        if family := family_of(field):
            assert all(part in shown for part in family.names())


@pytest.mark.parametrize("name", Command.part_names())
def test_positional_arguments_are_fields(name):
    command = Command.part(name)
    assert set(command.positional) <= set(command.model_fields)
