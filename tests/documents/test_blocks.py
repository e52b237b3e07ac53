"""What each reader makes of a document: headings with their levels, lists, listings, tables; what it leaves out."""

import json
import zipfile
from email.message import EmailMessage

import pytest

from settle.retrieve.index.chunkers.structure import Structure
from tests.documents import making

PAGE = """<!DOCTYPE html><html><head><title>Unused</title><style>p {}</style><script>if (a<b) {evil()}</script></head>
<body id=b><nav>menu <a href=x>y</a></nav>before
<h1 id=one>One <code>thing</code><a class=headerlink href="#one">¶</a></h1>
<p>Hi <b>bold</b>
 x<br>y<script>evil()</script> tail</p> loose <i>text</i>
<pre id=list>a
  b <b>c</b>
</pre>
<ul><li>first<li>second<ol start=3><li id=in>inner<li>other</ol></ul>
<table><caption>Sizes</caption><tr><th>A<th>B<tr><td>1<td>2<tr><td>3<td></table>
<dl><dt id=t1>term<dd>its words<dl><dt id=t2>part<dd><p>its own</dl>more of it</dl>after
<table><tr><td><p>layout</p><h2>In a cell</h2></td></tr></table>
<div hidden>gone</div><div aria-hidden=true>gone</div><footer>gone</footer></body></html>"""


def _told(path):
    return [(block.kind, block.level, block.text) for block in making.read(path)[0]]


def test_html(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    assert _told(tmp_path / "a.html") == [
        ("text", 6, "before"),
        ("heading", 1, "One thing"),
        ("text", 6, "Hi bold x\ny tail"),
        ("text", 6, "loose text"),
        ("code", 6, "a\n  b c"),
        ("list", 6, "- first"),
        ("list", 6, "- second"),
        ("list", 6, "  3. inner"),
        ("list", 6, "  4. other"),
        ("text", 6, "Sizes"),
        ("table", 6, "1 | 2\n3"),
        ("heading", 7, "term"),
        ("text", 7, "its words"),
        ("heading", 8, "part"),
        ("text", 8, "its own"),
        ("text", 7, "more of it"),
        ("text", 6, "after"),
        ("text", 6, "layout"),
        ("heading", 2, "In a cell"),
    ]
    blocks, notes = making.read(tmp_path / "a.html")
    assert next(block.header for block in blocks if block.kind == "table") == "A | B" and not notes


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("<meta charset=koi8-r><p>ключ".encode("koi8-r"), "ключ"),
        ("<p>Schlüssel".encode("cp1252"), "Schlüssel"),
        ("<p>Schlüssel".encode("utf-16"), "Schlüssel"),
        (b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><title/><p>key", "key"),
        (b"<meta charset=utf-16><p>key", "key"),
        (b"<meta charset=nonsense><p>key", "key"),
        (b"<main><p>key</main><p>aside", "key"),
        (b"<title>Of keys</title><p>key", "Of keys"),
    ],
)
def test_html_in_every_encoding(tmp_path, data, said):
    (tmp_path / "a.html").write_bytes(data)
    assert _told(tmp_path / "a.html")[0][2] == said


def test_markdown(tmp_path):
    (tmp_path / "a.md").write_text(
        '---\ntitle: "My page"\n---\nSetext\n------\nof [in](./x.md) [out](https://a.b) ![pic](p.png) `a[0](b)`\n\n'
        "## H **bold** `code` [l](x) {#id}\n> # quoted\n> text\n\n- one\n  ```\n  code\n  ```\n- two\n\n"
        '| A | B |\n|---|---|\n| 1 | 2 |\n\n```py title="x"\nx = 1\n```\n\n'
        '<p align="center">\n<!-- hid\nden --><b>bold</b>\n</p>\n'
    )
    assert _told(tmp_path / "a.md") == [
        ("heading", 1, "My page"),
        ("heading", 2, "Setext"),
        ("text", None, "of in [out](https://a.b) pic `a[0](b)`"),
        ("heading", 2, "H bold code l"),
        ("text", None, "> # quoted\n> text"),
        ("list", None, "- one\n  ```\n  code\n  ```\n- two\n"),
        ("table", None, "| 1 | 2 |"),
        ("code", None, "x = 1"),
        ("text", None, "\n\nbold\n"),
    ]


def test_rst(tmp_path):
    (tmp_path / "a.rst").write_text(
        "Title\n=====\n\nof :ref:`foo <bar>` and :func:`~os.open`\n\n.. index:: gone\n.. contents::\n\nSub\n---\n\n"
        "* one\n* two\n\n  more\n\n.. code-block:: python\n   :linenos:\n\n   x = 1\n\n.. function:: foo(a, b)\n\n"
        "   Its words.\n\n   .. versionadded:: 3.2\n\nAfter it.\n\n"
        "== ==\nA  B\n== ==\n1  2\n== ==\n\n.. include:: /etc/hostname\n"
    )
    assert _told(tmp_path / "a.rst") == [
        ("heading", 1, "Title"),
        ("text", 1, "of foo and open"),
        ("heading", 2, "Sub"),
        ("list", 2, "- one"),
        ("list", 2, "- two"),
        ("list", 2, "  more"),
        ("code", 2, "x = 1"),
        ("heading", 7, "foo(a, b)"),
        ("text", 7, "Its words."),
        ("text", 7, "3.2"),
        ("text", 2, "After it."),
        ("table", 2, "1 | 2"),
    ]


def test_text(tmp_path):
    (tmp_path / "README").write_text(
        "Big\n===\nwords\n\nNAME\n     cat - join files\n\na\n------------\n\nWHAT\nnot a heading\n"
    )
    assert _told(tmp_path / "README") == [
        ("heading", 1, "Big"),
        ("text", None, "words"),
        ("heading", 1, "NAME"),
        ("text", None, "     cat - join files"),
        ("text", None, "a\n------------"),
        ("text", None, "WHAT\nnot a heading"),
    ]


def test_word(tmp_path):
    assert _told(making.word(tmp_path / "a.docx")) == [
        ("heading", 1, "The guide"),
        ("heading", 1, "Setup"),
        ("text", None, "Install it first"),
        ("list", None, "- a cable"),
        ("list", None, "- a key"),
        ("table", None, "lid | 42 mm"),
        ("heading", 2, "Use"),
        ("text", None, "Turn the key to the right."),
    ]


def test_slides(tmp_path):
    assert _told(making.slides(tmp_path / "a.pptx")) == [
        ("heading", 1, "Welcome"),
        ("list", 1, "- tea at four\n  - or coffee"),
        ("text", 1, "wait until all are here"),
        ("text", 0, "inside a group"),
        ("table", 0, "small | 3"),
    ]


def test_sheets(tmp_path):
    path = making.sheets(tmp_path / "a.xlsx")
    assert [(block.header, block.text) for block in making.read(path)[0]] == [
        ("", "Costs 24"),
        ("", "Budget of the year"),
        ("Item | Price", "tea | 3.5"),
        ("Item | Price", "milk | 2"),
        ("", "Plain"),
        ("", "1 | 2 | 3"),
    ]


def test_pdf(tmp_path):
    said = ("The key is rotated every week, in the night", "to Monday.", "", "Old keys are kept.")
    text = [(11, line) for line in said]
    names = ["Keys", "Locks", "Doors", "Walls"]
    more = [(11, f"and {word}") for word in ("so", "on", "and", "on", "again")]
    pages = [
        [(10, "The handbook"), (24, name), *text, *more, (11, name), (10, f"page {n}")]
        for n, name in enumerate(names, 1)
    ]
    path = making.pdf(tmp_path / "a.pdf", [*pages, None, None, [(11, "")]])
    blocks, notes = making.read(path)
    assert [(block.kind, block.level, block.text) for block in blocks[:3]] == [
        ("heading", 1, "Keys"),
        ("text", None, "The key is rotated every week, in the night\nto Monday."),
        ("text", None, "Old keys are kept.\nand so\nand on\nand and\nand on\nand again\nKeys"),
    ]
    assert notes == ["left out: lines that repeat at the edges of its pages", "pages 5–6 are a picture: no text"]
    assert len(blocks) == 3 * 4


def test_pdf_with_an_outline(tmp_path):
    text = [(11, "The key is rotated every week, in the night"), (11, "to Monday.")]
    path = making.pdf(tmp_path / "a.pdf", [[(24, "Not in it"), *text], [(11, "1.2 Errors"), *text]], {"Errors": 2})
    assert [block.text for block in making.read(path)[0] if block.kind == "heading"] == ["1.2 Errors"]


def test_book(tmp_path):
    path = making.book(
        tmp_path / "a.epub", {"b.xhtml": "<h1>Two</h1>", "a.xhtml": "<p>first</p>"}, order=["a.xhtml", "b.xhtml"]
    )
    assert _told(path) == [("text", 6, "first"), ("heading", 1, "Two")]


def test_mail(tmp_path):
    message = EmailMessage()
    message["Subject"], message["From"] = "Schlüssel für dich", "Zoë <z@x.y>"
    message.set_content("Hello\n\nThe key is below.\n")
    message.add_alternative("<p>gone</p>", subtype="html")
    message.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="key.pdf")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    assert _told(tmp_path / "a.eml") == [
        ("heading", 1, "Schlüssel für dich"),
        ("text", None, "From: Zoë <z@x.y>"),
        ("text", None, "Hello"),
        ("text", None, "The key is below."),
    ]
    assert making.read(tmp_path / "a.eml")[1] == ["1 attachment left out: key.pdf"]


def test_mail_that_is_only_a_page(tmp_path):
    (tmp_path / "a.eml").write_bytes(
        b"Subject: x\nContent-Type: text/html; charset=nope\n\n<h1>Keys</h1><p>of w\xfcrde</p>"
    )
    assert _told(tmp_path / "a.eml")[1:] == [("heading", 2, "Keys"), ("text", 7, "of würde")]


def test_records(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"q": "why?", "a": {"text": "so\\nbe it", "n": [1, 2], "none": null}}\nno json\n'
    )
    assert _told(tmp_path / "a.jsonl") == [("text", None, "q: why?\na.text: so\nbe it\na.n: 1, 2")]
    assert making.read(tmp_path / "a.jsonl")[1] == ["no valid JSON in line 2 (expecting value, column 1)"]
    (tmp_path / "a.json").write_text(json.dumps({"title": "T", "rows": [{"q": 1}, {"q": True}], "tags": ["x", "y"]}))
    assert [block.text for block in making.read(tmp_path / "a.json")[0]] == [
        "title: T",
        "rows.q: 1",
        "rows.q: true",
        "tags: x, y",
    ]


@pytest.mark.parametrize(
    ("name", "source", "headings"),
    [
        ("a.py", "class A:\n    @cached\n    def f(self):\n{}\n\ndef g():\n    pass\n", ["A", "f"]),
        ("a.cpp", "#ifndef X\nnamespace n {{\nint A::f() {{\n{}\n}}\n}}\n#endif\n", ["n", "A::f"]),
        ("a.c", "static int *f(int a) {{\n{}\n}}\n", ["f"]),
        ("a.rs", "/// doc\nimpl<T> Show for A<T> {{\n    fn f() {{}}\n{}\n}}\n", ["A<T>"]),
        ("a.go", "package p\n// doc\nfunc (r *R) F() {{\n{}\n}}\n", ["F"]),
        ("a.js", "export default class A {{\n  m() {{ }}\n{}\n}}\n", ["A"]),
        ("a.tsx", "namespace N {{ export class I {{ f() {{}}\n{}\n}} }}\n", ["N", "I"]),
        ("a.java", "public class A {{\n  void f() {{\n{}\n  }}\n}}\n", ["A", "f"]),
        ("a.rb", "module M\n  def f\n{}\n  end\nend\n", ["M", "f"]),
        ("a.cs", "namespace A.B {{ class C {{ void F() {{}}\n{}\n}} }}\n", ["A.B", "C"]),
        ("a.php", "<?php\nclass C {{ function f() {{\n{}\n}} }}\n", ["C", "f"]),
        ("a.sh", "f() {{\n{}\n}}\n", ["f"]),
    ],
)
def test_code(tmp_path, name, source, headings):
    path = tmp_path / name
    path.write_text(source.format("        x = 1;\n" * 45))
    blocks, notes = making.read(path)
    assert [block.text for block in blocks if block.kind == "heading"] == headings and not notes
    assert [block.level for block in blocks if block.kind == "heading"] == list(range(1, len(headings) + 1))
    said = "".join(block.text for block in blocks if block.kind == "code")
    assert "".join(said.split()) == "".join(path.read_text().split())


def test_code_keeps_a_comment_with_what_it_is_about(tmp_path):
    (tmp_path / "a.py").write_text(
        "import os\n\n# about f\n# and more\ndef f():\n    pass\n\n\nx = 1  # aside\ndef g(): pass\n"
    )
    assert [block.text for block in making.read(tmp_path / "a.py")[0]] == [
        "import os",
        "# about f\n# and more\ndef f():\n    pass",
        "x = 1  # aside",
        "def g(): pass",
    ]


def test_headings_reach_the_passages(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    chunks = Structure().cut(making.read(tmp_path / "a.html")[0], lambda texts: [len(t.split()) for t in texts], 200)
    found = {chunk.text: chunk.headings for chunk in chunks}
    assert found["its own"] == ("One thing", "term", "part") and found["more of it"] == ("One thing", "term")
    assert found["after\n\nlayout"] == ("One thing",)


def test_word_with_changes_controls_and_footnotes(tmp_path):
    path = making.word(tmp_path / "a.docx")
    name = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    word = f'xmlns:w="{name}"'
    body = (
        "<w:p><w:pPr><w:pStyle w:val='Heading2'/></w:pPr><w:r><w:t>In a control</w:t></w:r></w:p>",
        "<w:p><w:r><w:t xml:space='preserve'>kept </w:t></w:r><w:ins><w:r><w:t>added</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del><w:r><w:tab/><w:t>end</w:t></w:r></w:p>",
        "<w:p><w:pPr><w:outlineLvl w:val='3'/></w:pPr><w:r><w:t>By its outline</w:t></w:r></w:p>",
    )
    document = (
        f"<w:document {word}><w:body><w:sdt><w:sdtContent>{''.join(body)}</w:sdtContent></w:sdt></w:body></w:document>"
    )
    notes = (
        f"<w:footnotes {word}><w:footnote><w:p><w:r><w:t>below the line</w:t></w:r></w:p></w:footnote></w:footnotes>"
    )
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member).decode("utf-8", "surrogateescape") for member in archive.namelist()}
    members["word/document.xml"], members["word/footnotes.xml"] = document, notes
    links = members["word/_rels/document.xml.rels"]
    link = f'<Relationship Id="rId99" Type="{kind}" Target="footnotes.xml"/></Relationships>'
    members["word/_rels/document.xml.rels"] = links.replace("</Relationships>", link)
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text.encode("utf-8", "surrogateescape"))
    assert _told(path) == [
        ("heading", 2, "In a control"),
        ("text", None, "kept added\tend"),
        ("heading", 4, "By its outline"),
        ("text", 0, "below the line"),
    ]


def test_old_and_new_notebooks(tmp_path):
    cells = [{"cell_type": "code", "input": ["x = 1"]}, {"cell_type": "raw", "source": "as it is"}]
    (tmp_path / "a.ipynb").write_text(json.dumps({"worksheets": [{"cells": cells}], "nbformat": 3}))
    assert _told(tmp_path / "a.ipynb") == [("code", None, "x = 1"), ("text", None, "as it is")]


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_tables_of_text(tmp_path, between):
    path = tmp_path / ("a.tsv" if between == "\t" else "a.csv")
    path.write_text("\n".join(between.join(row) for row in (("name", "size"), ("lid", "42"), ("", "7"), ("", ""))))
    assert [(block.header, block.text) for block in making.read(path)[0]] == [
        ("name | size", "lid | 42"),
        ("name | size", " | 7"),
    ]


def test_a_table_without_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    assert [(block.header, block.text) for block in making.read(tmp_path / "a.csv")[0]] == [
        ("", "1 | 2"),
        ("", "3 | 4"),
    ]


def test_a_pdf_whose_letters_are_not_told(tmp_path):
    line = (11, "\x01\x02\x03\x04\x05\x06\x07" * 5)
    path = making.pdf(tmp_path / "a.pdf", [[line], [(11, "words")]])
    blocks, notes = making.read(path)
    assert [block.text for block in blocks] == ["words"]
    assert notes == ["page 1 is set in a font that does not tell its letters: no text"]


def test_sheets_of_libreoffice(tmp_path):
    kinds = ("office", "table", "text", "manifest")
    names = " ".join(f'xmlns:{kind}="urn:oasis:names:tc:opendocument:xmlns:{kind}:1.0"' for kind in kinds)
    rows = ""
    for row in (("name", "size"), ("lid", "small")):
        cells = (
            f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>' for cell in row
        )
        rows += f"<table:table-row>{''.join(cells)}</table:table-row>"
    sheet = f'<table:table table:name="Parts">{rows}</table:table>'
    body = f"<office:body><office:spreadsheet>{sheet}</office:spreadsheet></office:body>"
    with zipfile.ZipFile(tmp_path / "a.ods", "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("META-INF/manifest.xml", f"<manifest:manifest {names}></manifest:manifest>")
        archive.writestr("content.xml", f"<office:document-content {names}>{body}</office:document-content>")
    blocks, _ = making.read(tmp_path / "a.ods")
    assert [(b.header, b.text, b.place.part) for b in blocks[1:]] == [("name | size", "lid | small", "Parts!A2")]


def test_what_surrounds_the_content_of_a_page_is_left_out(tmp_path):
    page = """<body><div class="sphinxsidebar"><ul><li>menu</ul></div><div id=left-column>logo</div>
<p>content</p><aside class=sidebar>a note beside the text</aside>
<div class="footer-relations x"><a>next</a></div><div class=footer>made with love</div>"""
    (tmp_path / "a.html").write_text(page)
    assert [text for *_, text in _told(tmp_path / "a.html")] == ["content", "a note beside the text"]


def test_style_and_script_in_markdown_are_left_out(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\n<style>\np { color: red }\n</style>\n\n<script>evil()</script>\n\nbold\n")
    assert [text.strip() for *_, text in _told(tmp_path / "a.md") if text.strip()] == ["A", "bold"]


def test_headers_and_footers_of_printed_pages_are_left_out(tmp_path):
    pages = [f"Guide to all          {n}\n\nPage {n} says much.\nAnd more.\n\nVersion 3, 2026\n" for n in range(1, 6)]
    (tmp_path / "a.txt").write_text("\n".join(pages))
    assert [text for *_, text in _told(tmp_path / "a.txt")] == [f"Page {n} says much.\nAnd more." for n in range(1, 6)]
    chapters = "\n".join(f"Chapter {n}\n\nIt says much.\n\nThe same\n" for n in range(1, 6))
    (tmp_path / "b.txt").write_text(chapters)
    assert len(_told(tmp_path / "b.txt")) == 15
