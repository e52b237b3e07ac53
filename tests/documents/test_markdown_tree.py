"""Markdown and formulas that a model wrote, or an attacker had it write: a tree of few known elements."""

import pytest

pytest.importorskip("latex2mathml", reason="needs the extra `studio`")

from settle.documents.markdown_tree import (
    DEEPEST,
    LONGEST,
    LONGEST_FORMULA,
    MATH_ATTRIBUTES,
    MATH_TAGS,
    TAGS,
    markdown_tree,
)  # fmt: skip

OURS = {*TAGS, *MATH_TAGS, "a", "br", "hr", "code", "listing", "details", "summary", "pre"}
ATTRIBUTES = {*MATH_ATTRIBUTES, "href", "title", "target", "rel", "start", "class", "language"}


def elements(nodes, depth=1):
    """All of a tree, with how deep each lies; texts as they are."""
    for node in nodes:
        if isinstance(node, str):
            yield node, {}, depth
        else:
            yield node[0], node[1], depth
            yield from elements(node[2], depth + 1)


def texts(nodes):
    return "".join(node if isinstance(node, str) else texts(node[2]) for node in nodes)


def tags(text):
    return [node[0] for node in markdown_tree(text)]


HOSTILE = {
    "raw HTML": "<script>alert(1)</script> <img src=x onerror=alert(1)>\n\n<iframe src='https://a.b'></iframe>",
    "links that run": "[a](javascript:alert(1)) [b](JaVaScRiPt:x) [c](data:text/html,x) <javascript:x> [d](vbscript:x)",
    "links to this machine": "[a](/runs) [b](//evil.example) [c](file:///etc/passwd) [d](#top)",
    "pictures": "![look](https://evil.example/pixel.png) ![](data:image/svg+xml,<svg/>)",
    "formulas": r"$$\href{javascript:alert(1)}{x}$$ \(\class{a}{b}\) $\style{color:red}{x}$ $<script>$ $\unknown{$",
    "a broken formula": r"\[ \frac{1}{ \]" + "\n\n$$\\begin{matrix} 1 & 2 $$",
    "endless marks": "*" * 3000 + "[" * 3000 + "`" * 3001 + "$" * 3001,
    "quotes within quotes": ">" * 3000 + " end",
    "lists within lists": "\n".join("  " * depth + "- item" for depth in range(1000)),
    "an open fence": "```python\nprint('</code></pre><script>')",
    "an open thought": "<think>\nwell <b>bold</b>",
    "control characters": "a\x00b\x1b[31mred\u202etxt",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_only_known_elements_come_out(name):
    for tag, attributes, depth in elements(markdown_tree(HOSTILE[name])):
        assert attributes.keys() <= ATTRIBUTES
        assert not attributes or tag in OURS
        assert depth <= 3 * DEEPEST
        assert str(attributes.get("href", "https://")).startswith(("https://", "http://"))
        assert "\x1b" not in tag and "\u202e" not in tag


def test_what_is_no_element_is_text():
    tree = markdown_tree(HOSTILE["raw HTML"])
    assert {node[0] for node in tree} == {"p"} and "<script>alert(1)</script>" in texts(tree)
    assert texts(markdown_tree("[a](javascript:alert(1))")) == "[a](javascript:alert(1))"
    assert texts(markdown_tree(HOSTILE["pictures"])).startswith("[picture: look]")
    assert texts(markdown_tree(HOSTILE["lists within lists"])).count("item") == 1000
    assert texts(markdown_tree("\n".join("  " * depth + "- item" for depth in range(30)))).count("item") == 30
    assert texts(markdown_tree(HOSTILE["quotes within quotes"])).endswith("end")
    assert tags(HOSTILE["an open fence"]) == ["listing"]
    assert tags("<think>\nso\n</think>\nYes.<tool_call>{}</tool_call>") == ["details", "p", "details"]


def test_elements_as_they_are_written():
    ((tag, _, (hi, strong, *rest)),) = markdown_tree("Hi **you**")
    assert (tag, hi, strong, "".join(rest)) == ("p", "Hi ", ["strong", {}, ["you"]], "")
    assert markdown_tree("```python x\nprint(1)\n```") == [["listing", {"language": "python x"}, ["print(1)\n"]]]
    ((_, _, ((_, link, _), *_)),) = markdown_tree("[a](https://a.b/c)")
    assert link["href"] == link["title"] == "https://a.b/c" and "noopener" in link["rel"]
    table = markdown_tree("|a|b|\n|-|-:|\n|1|2|")
    assert [tag for tag, _, _ in elements(table) if tag in ("table", "th", "td")] == ["table", "th", "th", "td", "td"]
    assert [found for tag, found, _ in elements(table) if tag == "td"] == [{}, {"class": "number"}]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (r"$$\frac{1}{2}$$", ["mfrac"]),
        ("\\[\nx^2 = 4\n\\]", ["msup"]),
        (r"so \(a_1\) and $b_2$", ["msub", "msub"]),
        (r"it costs $5 and $6, or \$7$", []),
        ("$$\\begin{align*} a &= 1 \\\\ b &= 2 \\end{align*}$$", ["mtable"]),
        ("`$x^2$`", []),
        ("$$" + "x^2" * LONGEST_FORMULA + "$$", []),
    ],
)
def test_formulas(text, made):
    found = [tag for tag, _, _ in elements(markdown_tree(text))]
    assert [tag for tag in found if tag in ("mfrac", "msup", "msub", "mtable")] == made


def test_a_formula_that_cannot_be_read_is_shown_as_it_is():
    for source in (r"\begin{x}", r"\frac{1}{", r"\left( x"):
        assert source in texts(markdown_tree(f"$${source}$$"))


def test_long_texts_stay_whole():
    """Beyond LONGEST only blocks of code keep their form: what is shown ten times a second must stay cheap."""
    table = "|a|b|\n|-|-|\n" + "|1|2|\n" * LONGEST
    assert tags(table) == ["p"] and texts(markdown_tree(table)) == table
    code = "print(1)\n" * LONGEST
    tree = markdown_tree(f"Here:\n\n```py\n{code}```\n\n*done*")
    assert [node[0] for node in tree] == ["p", "listing", "p"] and tree[1][2] == [code]
