"""What the documentation says can be done, and where it points, is so."""

import re
import runpy
import shlex
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import settle
from settle.base.amounts import count, seconds
from settle.base.choice import Choice, described
from settle.base.errors import SettleError, UsageError
from settle.base.registry import part_names, parts
from settle.base.run.result import NOT_BETTER
from settle.base.settings import group_of, read_recipe, resolve
from settle.cli import STDIN, _choices, _sharing, build_app
from settle.commands.make.index import Index
from settle.commands.make.train import Train
from settle.commands.make.tune import Tune
from settle.commands.use.chat import Chat
from settle.jobs.job import INTERRUPTED
from settle.jobs.lab import CODES, UNDECIDED
from settle.train.optimizers.adamw import AdamW
from settle.train.optimizers.muon import Muon

ROOT = Path(settle.__file__).parents[1]
LLMS = ROOT / "llms.txt"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", LLMS, *sorted((ROOT / "docs").glob("*.md"))]
TYPED = runpy.run_path(str(ROOT / "bench/typed.py"))
FENCE = TYPED["FENCE"]
INLINE = re.compile(r"`(settle [^`]+)`")
EVERYWHERE = {
    "| `--json` | off | print the result as JSON, the last line of stdout |",
    "| `--verbose`, `-v` | off | show every check, every number and every evaluation |",
    "| `--offline` | off | run without a network; refuse where that cannot be proved (Linux) |",
}
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


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_line_is_one_that_settle_takes(page: str, command: str) -> None:
    given = [STDIN if token == "-" else token for token in shlex.split(command, comments=True)[1:]]
    if given[0].startswith("-"):
        assert given[0] in ("--help", "--version", "--completion", "--install-completion")
        return
    assert given[0].replace("-", "_") in part_names("commands")
    if given[1:] and given[1:] != ["--help"]:  # the bare name of a command is a word in a sentence
        _, bound, _ = build_app(given).parse_args(given, exit_on_error=False, print_error=False)
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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "bench/results/README.md"], ids=lambda page: page.name)
def test_no_page_has_the_marks_of_a_merge(page: Path) -> None:
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", page.read_text(encoding="utf-8"), re.M)


def test_every_page_is_in_one_of_seven_groups() -> None:
    """The list in docs/README.md is the navigation of the site."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): ", index, re.M)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(re.findall("^## ", index, re.M)) == 7 and len(listed) == len(set(listed))
    assert pages == {name for name in listed if not name.startswith("../")}


def test_the_manual_is_that_of_the_parser() -> None:
    """A page for `man` of settle and of every command, with every option that help shows."""
    made = runpy.run_path(str(ROOT / "bench/manual.py"))
    pages = {page.name: page.read_text(encoding="utf-8") for page in made["FOLDER"].iterdir()}
    assert pages == made["manual"](), "run python bench/manual.py"
    assert {f"settle-{name.replace('_', '-')}.1" for name in part_names("commands")} | {"settle.1"} == set(pages)
    assert (
        r"\fB\-\-time\fR \fISTR\fR" in pages["settle-train.1"] and r"\fB\-\-adapter.rank\fR" in pages["settle-tune.1"]
    )


def test_the_page_for_models_has_the_form_of_llmstxt_org() -> None:
    """A title, a quotation, prose without headings, then sections of links with a note each."""
    head, *sections = re.split(r"^## ", LLMS.read_text(encoding="utf-8"), flags=re.M)
    assert re.match(r"# [^\n]+\n\n> [^\n]+\n", head) and len(re.findall("^#", head, re.M)) == 1
    for section in sections:
        title, *lines = section.strip().splitlines()
        assert title and [line for line in lines if line and not re.match(r"- \[[^\]]+\]\([^)]+\)(: .+)?$", line)] == []
    assert sections[-1].startswith("Optional\n")


def test_agents_can_branch_on_every_exit_code() -> None:
    page = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert codes == {0, SettleError.exit_code, UsageError.exit_code, NOT_BETTER, UNDECIDED, INTERRUPTED}
    assert {*CODES.values()} < codes


def test_every_setting_is_documented_with_its_default_and_description() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    of_train, of_tune, of_parts = re.split(
        "^## (?:Every setting of `settle tune`|Settings of parts).*", page, flags=re.M
    )
    trained, tuned = _settings(Train, "--"), _settings(Tune, "--")
    assert _rows(of_train) == {*trained, *EVERYWHERE}
    assert _rows(of_tune) == {row for row in tuned - trained if not row.startswith(("| `--model`", "| `--time`"))}
    assert _rows(of_parts) == {row for _, _, rows in settings_of_parts() for row in rows}


def test_the_parts_of_every_choice_are_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (`--.*)$", page, re.M) == [title for title, _, _ in settings_of_parts()]


def settings_of_parts() -> list[tuple[str, list[str], list[str]]]:
    """Title, names and table rows of the parts that can be chosen, those with the same settings together."""
    choices = {**_choices(Train), **_choices(Tune), **_choices(Index)}
    return [
        (
            f"`--{name} {' or '.join(names)}`",
            names,
            [_row(f"--{name}.{setting}", field) for setting, field in part.model_fields.items()],
        )
        for name, family in choices.items()
        for names, part in _sharing(family)
    ]


def _rows(page: str) -> set[str]:
    return set(re.findall(r"^\| `--.*$", page, re.M))


def _settings(model: type[BaseModel], prefix: str) -> set[str]:
    """Return the table's rows, of every group too."""
    rows: set[str] = set()
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group:
            rows |= _settings(group, f"{prefix}{name.replace('_', '-')}.")
        elif name != "inputs":
            rows.add(_row(prefix + name, field))
    return rows


def _row(flag: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return f"| `{flag.replace('_', '-')}` | {_shown(default)} | {described(field)} |"


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, Choice):
        return default.name or "–"
    if default in (None, "", []):
        return "–"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_setting_of_chat_and_of_the_optimizers_is_documented() -> None:
    chat = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    for name in set(Chat.model_fields) - {*Chat.positional, "json"}:
        assert f"`--{name.replace('_', '-').rstrip('-')}`" in chat
    recipe = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for name in {*Muon.model_fields, *AdamW.model_fields}:
        assert f"`{name}`" in recipe


def test_the_page_of_the_doctor_names_each_check_as_it_is() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\|(\d+)\|`([\w-]+)`\|(.+)\|$", page, re.M))
    checks = {(str(c.number), name.replace("_", "-"), c.symptom) for name, c in parts("doctor/checks").items()}
    assert rows == checks


@pytest.mark.parametrize(("family", "page"), [("data/cleaning", "data.md"), ("documents/readers", "readers.md")])
def test_every_cleaning_pass_and_reader_is_documented(family: str, page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, kind in parts(family).items():
        assert f"| {name} |" in text or not kind.__module__.startswith("settle.")


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


def test_the_page_of_results_is_what_its_rows_say() -> None:
    made = runpy.run_path(str(ROOT / "bench/results_page.py"))
    page = made["PAGE"].read_text(encoding="utf-8")
    assert page == made["page"](), "run python bench/results_page.py"
    rows = [row for section in made["rows"]().values() for row in section]
    assert 20 < len(rows) <= 300 and len(page.split()) <= 6500
    assert len({row.id for row in rows}) == len(rows) and any(not row.met for row in rows)


SENTENCE_OR_CELL = re.compile(r"-->|[.:;]\s|\|\s|\n\n")
NUMBER = re.compile(r"(?<![\w@.-])\d[\d,.]*(?<![,.])")


def quoted(text: str) -> list[tuple[str, str]]:
    """Return each figure that a page quotes, with the words before it in its sentence or cell, and its row's id."""
    marks = re.split(r"<!--row:([\w-]+)-->", text)
    return [(SENTENCE_OR_CELL.split(before)[-1], row) for before, row in zip(marks[::2], marks[1::2], strict=False)]


QUOTES = [
    (page.name, words, row) for page in PAGES for words, row in quoted(FENCE.sub("", page.read_text(encoding="utf-8")))
]


def _rows_of_results() -> dict[str, BaseModel]:
    made = runpy.run_path(str(ROOT / "bench/results_page.py"))
    return {row.id: row for section in made["rows"]().values() for row in section}


def test_every_quoted_figure_is_that_of_its_row() -> None:
    rows = _rows_of_results()
    assert len(QUOTES) > 10
    for page, words, name in QUOTES:
        assert name in rows, f"{page}: no row {name}"
        row = rows[name].model_dump()
        said = set(NUMBER.findall(words))
        assert said & set(NUMBER.findall(row["figure"])), f"{page}: {words!r} quotes no figure of {name}"
        known = NUMBER.findall(" ".join(str(value) for value in row.values()))
        assert said <= set(known), f"{page}: {sorted(said - set(known))} in {words!r} differ from the row {name}"


def test_what_the_typing_script_lists_is_printed_on_a_page() -> None:
    """bench/typed.py types what the pages print: no exception, answer, server or placeholder outlives its command."""
    printed = {command for page in TYPED["pages"]() for block in TYPED["blocks"](page) for command in block}
    listed = TYPED["LIST"]
    assert {*TYPED["NOT_TYPED"], *listed["answers"], *listed["beside"]} <= printed
    assert 5 * len(TYPED["NOT_TYPED"]) < len(printed) and len(printed) > 100
    for words in listed["stand_ins"]:
        assert any(words in command for command in printed), words
    for pattern in listed["shorter"]:
        assert any(re.search(pattern, command) for command in printed), pattern


def test_the_readme_is_read_in_a_minute() -> None:
    """Its first figure is what the recipe brings, and every door has one; its table and its picture are made."""
    text, made = (ROOT / "README.md").read_text(encoding="utf-8"), runpy.run_path(str(ROOT / "bench/readme.py"))
    assert len(text.splitlines()) <= 110 and [row for _, row in quoted(text)][0] == "equal-time"
    for door in ("Train", "Tune", "Ask"):
        assert "<!--row:" in text.partition(f"\n**{door}** ")[2].partition("```")[0], door
    assert text.partition("<!--made:models-->\n")[2].partition("<!--end-->")[0] == made["models_table"]()
    picture = ROOT / "docs/run.svg"
    drawing = ET.fromstring(picture.read_text(encoding="utf-8"))
    shown = ["".join(line.itertext()) for line in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert f"]({picture.relative_to(ROOT)})" in text and picture.stat().st_size <= 300_000
    assert any("proof:" in line for line in shown) and any("gate: passed" in line for line in shown)


def test_every_bench_makes_a_row_or_a_constant_or_serves_one_that_does() -> None:
    scripts = sorted((ROOT / "bench").rglob("*.py"))
    users = [*scripts, *(ROOT / "settle").rglob("*.py"), *(ROOT / "bench/results").glob("*.toml"), *PAGES]
    users += [ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *(ROOT / "bench/results").glob("*.md")]
    texts = {path: path.read_text(encoding="utf-8") for path in users}
    for script in scripts:
        named = re.compile(rf"\b{script.stem}\.py\b|\b(?:from|import|-p) (?:\w+\.)*{script.stem}\b")
        assert any(named.search(text) for path, text in texts.items() if path != script), script


LONG_PAGES = {"method.md": 4500, "settings.md": 3200, "develop.md": 3000}


def test_the_documentation_is_short() -> None:
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in (ROOT / "docs").glob("*.md")}
    assert {name: count for name, count in words.items() if count > LONG_PAGES.get(name, 900)} == {}
    assert sum(words.values()) <= 42_375


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_is_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in _anchors((page.parent / target) if target else page), f"{page.name}: {target}#{anchor}"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {settle.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
