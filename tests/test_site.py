"""The site of the documentation: what is put into it, and what its check finds. `make docs` builds the real one."""

import runpy
from pathlib import Path

import pytest

import settle

ROOT = Path(settle.__file__).parents[1]


@pytest.fixture(scope="module")
def build():
    pytest.importorskip("snowballstemmer", reason="the extra `rag` is not installed")
    return runpy.run_path(str(ROOT / "bench/site/build.py"))


def test_the_navigation_is_the_list_of_pages(build):
    groups = build["navigation"]((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    assert [*groups][0] == "Start here" and groups["Start here"][0] == ("settle", "README.md")
    assert "bench/results/README.md" in [path for _, path in groups["Check"]]


def test_what_pages_link_to_comes_along(build):
    names = {path.relative_to(ROOT).as_posix() for path in build["linked"](ROOT / "README.md")}
    assert {"docs/run.svg", "docs/tune.md", "docs/studio/runs-dark.png", "docs/verdict.schema.json"} <= names
    assert {"LICENSE", "CONTRIBUTING.md", "bench/results/README.md"} <= names
    listed = build["navigation"]((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    pages = {path for group in listed.values() for _, path in group}
    assert {name for name in names if name.endswith(".md")} - {"docs/README.md"} <= pages


def test_a_list_after_text_is_one_for_mkdocs_too(build):
    text = "Which:\n- one\n  more\n- two\n\n```\na\n- b\n```\n"
    assert build["rendered_elsewhere"](text) == text.replace("Which:\n", "Which:\n\n")


def test_the_python_page_has_every_public_name_with_its_docstring(build):
    page = build["api_page"]({"train"})
    assert [name for name in settle.__all__ if f"## settle.{name}\n" not in page] == ["SettleError"]
    assert "## SettleError\n" in page and "### FinishedRun.generate\n" in page and "commands/train.md" in page
    assert "settle.api.FinishedRun" not in page and "None\n\n" not in page


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<p id="a"><a href="#a">x</a> <a href="https://example.org">y</a> <a href="b/index.html#c">z</a>', ""),
        ('<a href="gone.html">x</a>', "index.html links to gone.html, which is not there"),
        ('<a href="b/index.html#d">x</a>', "index.html links to b/index.html#d, which has no such anchor"),
        ('<img src="gone.png">', "index.html links to gone.png, which is not there"),
        ('<script src="https://cdn.example/x.js"></script>', "index.html loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "index.html loads //fonts.example/x.css"),
        ('<p style="background: url(https://x.example/y.png)">', "index.html loads https://x.example/y.png"),
    ],
)
def test_dead_links_and_what_is_loaded_from_elsewhere_are_found(build, tmp_path, text, fault):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/index.html").write_text('<h1 id="c">b</h1>')
    (tmp_path / "index.html").write_text(text)
    assert [*build["faults"](tmp_path)] == ([fault] if fault else [])


def test_a_style_or_script_that_names_another_host_is_found(build, tmp_path):
    (tmp_path / "a.css").write_text("@import url(https://fonts.example/css);")
    (tmp_path / "b.js").write_text('fetch("https://x.example/y"); const ns = "http://www.w3.org/2000/svg"')
    (tmp_path / "search").mkdir()
    (tmp_path / "search/search_index.js").write_text('"see https://example.org"')
    wrong = ["a.css names https://fonts.example/css", "b.js names https://x.example/y"]
    assert sorted(build["faults"](tmp_path)) == wrong
