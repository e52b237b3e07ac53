"""Documents, in a real browser: a question to its end, where it is answered, and how a collection stands."""

import os
import re

import pytest

from settle.retrieve.index.catalogue import Catalogue
from settle.studio.passage import marked_parts, passage_link
from tests.documents import making
from tests.retrieve.asked import TEXTS, index
from tests.retrieve.conftest import joined  # noqa: F401  `hashed` is an embedder
from tests.studio.conftest import COMMAND, axe_findings, running_studio

MANUAL = "The red lever of the north gate opens the lock in ninety seconds."


@pytest.fixture(scope="module")
def studio(joined, tmp_path_factory):  # noqa: F811
    """One whose home has a collection: of text, of a PDF, and of a file that nothing can be read of."""
    pytest.importorskip("nicegui", reason="needs the extra `studio`")
    home = tmp_path_factory.mktemp("home")
    folder = home / "docs"
    folder.mkdir()
    making.pdf(folder / "gate.pdf", [[(11, "The cover of the manual of the gate.")], [(11, MANUAL)]])
    (folder / "broken.pdf").write_text("no PDF")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        index("docs", folder, {**TEXTS, "tip.txt": f"{'Nothing. ' * 5}\n" * 30 + TEXTS["storm.txt"]})
        yield from running_studio(home)


def _ask(page, question: str):
    page.goto("/documents")
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_an_answer_cites_each_sentence_and_the_citation_opens_the_line(page):
    _ask(page, "How do I rotate the key?")
    page.get_by_role("heading", name="Quoted from the documents").wait_for(timeout=COMMAND)
    sentence = page.locator(".sentence", has_text="To rotate the key").first
    assert "supported" not in sentence.inner_text()  # it is quoted
    assert axe_findings(page) == []
    with page.expect_popup() as opened:
        sentence.get_by_role("link").click()
    tab = opened.value
    tab.get_by_role("heading", name="keys.md:5").wait_for()
    assert "To rotate the key" in tab.locator("mark").first.inner_text()
    numbered = tab.locator("pre.lines > div", has=tab.locator("mark")).first.inner_text()
    assert numbered.split()[0] == "5"
    tab.get_by_text("# Keys").wait_for()  # what is before the passage is there, and not marked
    assert "# Keys" not in tab.locator("mark").all_inner_texts()
    assert "".join(tab.locator("mark").all_inner_texts()) in sentence.inner_text()  # the sentence, and no more
    assert axe_findings(tab) == []
    tab.close()


def _passage(studio, words: str) -> str:
    """The address of the page of a passage with these words, as an answer links to it."""
    with Catalogue(studio.home / "collections/docs/1/catalogue.sqlite") as catalogue:
        found = next(passage for passage in catalogue.passages.page() if words in passage.text)
    return passage_link("docs", found.id)


def test_a_citation_of_a_pdf_opens_its_page(page, studio):
    page.goto(_passage(studio, "red lever"))
    address = page.get_by_role("link", name="Open the document at page 2").get_attribute("href")
    assert address.endswith("#page=2")
    answer = page.request.get(address)
    assert answer.headers["content-type"] == "application/pdf" and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.body() == (studio.home / "docs/gate.pdf").read_bytes()
    for path in (studio.home / "server/key", studio.home / "docs/keys.md", studio.home / "docs/broken.pdf"):
        assert page.request.get(re.sub("path=[^&#]*", f"path={path}", address)).status == 404  # only what is cited


def test_a_refusal_is_explained(page):
    _ask(page, "Who won the chess championship of 1972?")
    page.get_by_role("heading", name="The documents do not answer this").wait_for(timeout=COMMAND)
    page.get_by_text(re.compile(r"The probability that the documents hold an answer is \d+%.*below \d+%")).wait_for()
    assert "championship" in page.get_by_text("what comes nearest does not mention").inner_text()
    page.get_by_text("settle index docs --check").wait_for()
    page.get_by_role("heading", name="Nearest passages").wait_for()


def test_the_status_says_what_changed_and_what_could_not_be_read(page, studio):
    folder = studio.home / "docs"
    page.goto("/documents")
    row, columns = page.get_by_role("row", name=re.compile("^docs")), page.get_by_role("columnheader")
    row.wait_for()

    def cell(name: str) -> str:
        return row.locator("th, td").nth(columns.all_inner_texts().index(name)).inner_text()

    assert [cell(name) for name in ("not read", "new", "changed", "gone")] == ["1", "0", "0", "0"]
    page.get_by_role("heading", name="Not indexed").wait_for()
    page.get_by_role("rowheader", name=str(folder / "broken.pdf")).wait_for()
    (folder / "moon.md").write_text("The moon is far.")
    os.utime(folder / "storm.txt", (1, 1))  # another time, the same content: it is not read again
    page.reload()
    row.wait_for()
    assert [cell(name) for name in ("new", "changed", "gone")] == ["1", "0", "0"]
    page.get_by_role("button", name="Bring the chosen one up to date").click()
    page.get_by_text(re.compile(r"^docs: \d+ documents, \d+ passages\.$")).wait_for(timeout=COMMAND)
    assert cell("new") == "0"


def test_a_passage_whose_document_changed_is_shown_as_it_was(page, studio):
    food = studio.home / "docs/food.md"
    page.goto(_passage(studio, "opens at noon"))
    page.get_by_role("heading", name="food.md:3").wait_for()
    food.write_text("# Lunch\n\nClosed.\n")
    page.reload()
    page.get_by_text("Its document has changed since it was indexed.").wait_for()
    assert "opens at noon" in page.locator("mark").inner_text() and "Closed" not in page.content()
    food.unlink()
    page.reload()
    page.get_by_text("No such file or directory").wait_for()


@pytest.mark.parametrize("path", ["docs/999999", "docs/x", "..%5Cruns/1", "nothing/1"])
def test_a_passage_that_is_not_there_says_so(page, path):
    page.seen.allowed = "404"  # of an address that can be no passage's
    page.goto(f"/passage/{path}")
    page.get_by_role("alert").wait_for()


def test_a_sentence_is_marked_where_it_is_whatever_breaks_it():
    lines = ["The key is under", "the **mat**, says Ann. It is red."]
    assert marked_parts(lines, "key is under the mat, says Ann.") == [
        ("The ", "key is under", ""), ("", "the **mat**, says Ann.", " It is red.")]  # fmt: skip
    for other in ("", "…", "The key is lost"):  # then all of the passage is marked
        assert marked_parts(lines, other) == [("", line, "") for line in lines]


def test_a_page_without_collections_shows_the_first_one_when_it_is_there(page, studio):
    collections = studio.home / "collections"
    aside = collections.rename(studio.home / "aside")
    page.goto("/documents")
    page.get_by_role("link", name="Index a folder").wait_for()
    aside.rename(collections)
    page.get_by_label("Question").wait_for()


def test_a_collection_is_deleted_with_consent_and_its_documents_stay(page, studio):
    page.goto("/documents")
    page.get_by_role("button", name="Delete the chosen one").click()
    page.get_by_text(
        re.compile(r"^Delete the index of docs: [\d.]+ \wB\? The documents stay where they are\.$")
    ).wait_for()
    assert axe_findings(page) == [] and (studio.home / "collections/docs").exists()
    page.get_by_role("button", name="Delete docs for good").click()
    page.get_by_text("None to ask yet.").wait_for(timeout=COMMAND)
    assert not (studio.home / "collections/docs").exists() and (studio.home / "docs/keys.md").exists()
