"""What the documentation says can be done, and where it points, is so."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from cyclopts import App
from pydantic import BaseModel

import settle
from settle.base.amounts import count, seconds
from settle.base.registry import part_names
from settle.base.settings import read_recipe, resolve
from settle.cli import STDIN, _spelled, build_app
from settle.commands.chat import Chat
from settle.commands.train import Train
from settle.commands.tune import Tune
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon

ROOT = Path(settle.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`(settle [^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def _commands(page: Path) -> list[str]:
    """Every complete `settle …` of a page, in blocks and in sentences; `settle COMMAND --help` and such are none."""
    text = page.read_text(encoding="utf-8")
    found = INLINE.findall(FENCE.sub("", text))
    for language, block in FENCE.findall(text):
        if not language:
            found += re.findall(r"(?:^|\| )(settle [^|\n]*)", block, re.M)
    return [command for command in found if "COMMAND" not in command and "…" not in command]


COMMANDS = [(page.name, command) for page in PAGES for command in _commands(page)]


@pytest.fixture(scope="module")
def app() -> App:
    return build_app()


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_line_is_one_that_settle_takes(page: str, command: str, app: App) -> None:
    given = _spelled([STDIN if token == "-" else token for token in shlex.split(command, comments=True)[1:]])
    if given[0].startswith("-"):
        assert given[0] in ("--help", "--version", "--install-completion")
        return
    assert given[0] in part_names("commands")
    if given[1:] and given[1:] != ["--help"]:  # the bare name of a command is a word in a sentence
        _, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
        asked = bound.kwargs
        for name, read in (("size", count), ("tokens", count), ("time", seconds)):
            if asked.get(name):
                read(asked[name])


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        where = (page.parent / target).resolve()
        assert where.exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_ours_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"`((?:bench|settle|tests|recipes)/[\w/.]+\w)`", page.read_text(encoding="utf-8"))
    assert all((ROOT / name).exists() for name in named), named


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(LINK.findall(index))


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    of_train, _, of_tune = page.partition("## Every setting of `settle tune`")
    trained = _settings(Train, "--") | {"--json": "off"}
    assert _rows(of_train) == trained
    own = {flag: default for flag, default in _settings(Tune, "--").items() if trained.get(flag) != default}
    assert _rows(of_tune) == {flag: default for flag, default in own.items() if flag not in ("--model", "--time")}


def _rows(page: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(--[\w.-]+)` \| ([^|]+) \|", page, re.M))


def _settings(model: type[BaseModel], prefix: str) -> dict[str, str]:
    """Flag → default as the page tells it, of every group too."""
    known: dict[str, str] = {}
    for name, field in model.model_fields.items():
        flag, default = prefix + name.replace("_", "-"), field.get_default()
        if isinstance(default, BaseModel):
            known |= _settings(type(default), f"{flag}.")
        elif name != "inputs":
            known[flag] = _told(default)
    return known


def _told(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None or default == {}:
        return "–"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_setting_of_chat_and_of_the_optimizers_is_documented() -> None:
    chat = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    for name in set(Chat.model_fields) - {*Chat.positional, "json"}:
        assert f"`--{name.replace('_', '-')}`" in chat
    recipe = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for name in {*Muon.model_fields, *AdamW.model_fields}:
        assert f"`{name}`" in recipe


def test_every_cleaning_pass_and_kind_of_source_is_documented() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in (*part_names("data/cleaning"), *part_names("data/sources")):
        assert f"| {name} |" in page


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_recipe_resolves(recipe: Path) -> None:
    settings = resolve(Train, [("recipe", read_recipe(recipe))]).value
    assert settings.inputs
    for value, read in ((settings.size, count), (settings.tokens, count), (settings.time, seconds)):
        if value:
            read(value)


def test_the_recipe_in_the_settings_page_resolves() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(page) if language == "toml"]
    assert blocks and all(resolve(Train, [("recipe", tomllib.loads(block))]) for block in blocks)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {settle.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
