"""Files that are no text for people: indexes of a search, minified code, stylesheets, pages of links."""

from pathlib import Path

import pytest

from settle.documents.blocks import LEFT_OUT
from settle.documents.reader_pool import Read, read_all
from settle.documents.readers import reader_of

TERMS = ",".join(f'"{word}{n}":[{n},{n + 1},"t"]' for n in range(900) for word in ("sparc", "sparingli"))
SPHINX = f'Search.setIndex({{"docnames":["a","b"],"terms":{{{TERMS}}}}})'
DOXYGEN = "var searchData=\n[\n  ['alpha_0',['alpha',['../a.html#a1',1,'']]],\n];\n"
MINIFIED = "/*! lib v3 | MIT */\n" + "".join(f"function f{n}(a,b){{return a+b*{n}}}" for n in range(300)) + "\n"
WRITTEN = "".join(f"// Adds {n}.\nfunction add{n}(number) {{\n  return number + {n};\n}}\n\n" for n in range(60))
ITEMS = "".join(f'<li><a href="c{n}.html#s{n}">Section {n} on the matter</a></li>' for n in range(60))


def _read(folder: Path, name: str, text: str) -> Read:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    (read,) = read_all([(path, reader_of(name) or "text")])
    return read


def _index_page(entries: int) -> str:
    """An alphabetical index, as manuals have it: a term, and where it is explained."""
    lines = "".join(
        f'<p>term {n} <a href="c{n}.html">The chapter on term {n}, its options</a></p>' for n in range(entries)
    )
    return f"<html><body><h1>Options index</h1><h2>A</h2>{lines}</body></html>"


@pytest.mark.parametrize(
    "name, text, why",
    [
        ("searchindex.js", SPHINX, "the search index of a web site"),
        ("all_0.js", DOXYGEN, "the search index of a web site"),
        ("lib.min.js", MINIFIED, "minified code"),
        ("bundle.js", MINIFIED, "minified code"),  # whatever its name
        ("basic.css", "div.body {\n  min-width: 450px;\n}\n", "a stylesheet"),
        ("toc.html", f"<html><body><h1>Contents</h1><ul>{ITEMS}</ul></body></html>", "a page of links to other pages"),
        ("ch-option_index.html", _index_page(40), "a page of links to other pages"),
    ],
)
def test_what_is_no_text_for_people_is_left_out_with_the_reason(tmp_path, name, text, why):
    read = _read(tmp_path, name, text)
    assert read.error == LEFT_OUT + why and not read.blocks


@pytest.mark.parametrize(
    "name, text",
    [
        ("add.js", WRITTEN),
        ("few.html", f"<html><body><h1>See also</h1><ul>{ITEMS[:600]}</ul></body></html>"),
        (
            "guide.html",
            f"<html><body><ul>{ITEMS}</ul>{'<p>A paragraph that says at length what to do.</p>' * 70}</body></html>",
        ),
        (
            "links.html",  # a list that says something of each link
            "<html><body>"
            + "".join(
                f'<p><a href="u{n}">tool {n}</a> measures how fast the pump {n} turns at night.</p>' for n in range(40)
            )
            + "</body></html>",
        ),
    ],
)
def test_text_with_links_and_code_that_people_write_are_read(tmp_path, name, text):
    read = _read(tmp_path, name, text)
    assert not read.error and read.blocks
