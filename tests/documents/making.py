"""Documents for tests, made with what people make them with; PDF by hand, so that each of its bytes is known."""

import io
import zipfile
from pathlib import Path

import docx
import pypdf
import xlsxwriter
from docx.oxml import OxmlElement
from pptx import Presentation

from settle.documents.blocks import Block
from settle.documents.readers import Reader, reader_of

Line = tuple[int, str]  # size in points, text


def pdf(path: Path, pages: list[list[Line] | None], outline: dict[str, int] | None = None, password: str = "") -> Path:
    """Pages of lines, None for one that is a picture. outline: title → page from 1."""
    writer = pypdf.PdfWriter(io.BytesIO(_pdf(pages)))
    for title, page in (outline or {}).items():
        writer.add_outline_item(title=title, page_number=page - 1)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)
    return path


def _pdf(pages: list[list[Line] | None]) -> bytes:
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, lines in enumerate(pages):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F 3 0 R >> >> "
            f"/Contents {5 + 2 * i} 0 R >>"
        )
        drawn = _picture() if lines is None else _drawn(lines)
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out, offsets = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + table + trailer).encode("latin-1")


def _drawn(lines: list[Line]) -> str:
    """An empty text is the space between two paragraphs."""
    said, y = [], 800.0
    for size, text in lines:
        y -= size * 1.2
        if text:
            said.append(f"BT /F {size} Tf 60 {y:.1f} Td ({text}) Tj ET")
    return "\n".join(said)


def _picture() -> str:
    return "q 400 0 0 400 90 200 cm\nBI /W 1 /H 1 /CS /G /BPC 8 /F /AHx ID\n7f>\nEI Q"


def word(path: Path, paged: bool = True) -> Path:
    """Two sections, a list and a table; the second section on page 2."""
    document = docx.Document()
    document.add_heading("The guide", 0)
    document.add_heading("Setup", 1)
    document.add_paragraph("Install it ").add_run("first").bold = True
    document.add_paragraph("a cable", style="List Bullet")
    document.add_paragraph("a key", style="List Number 2")
    table = document.add_table(rows=2, cols=2)
    for row, texts in zip(table.rows, (("Name", "Size"), ("lid", "42 mm")), strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    document.add_heading("Use", 2)
    run = document.add_paragraph().add_run()
    if paged:
        run._r.append(OxmlElement("w:lastRenderedPageBreak"))
    run.add_text("Turn the key to the right.")
    document.save(str(path))
    return path


def slides(path: Path) -> Path:
    """A slide with a title, a list and notes; one without a title, with a group and a table."""
    shown = Presentation()
    first = shown.slides.add_slide(shown.slide_layouts[1])
    first.shapes.title.text = "Welcome"
    first.placeholders[1].text = "tea at four\nor coffee"
    first.placeholders[1].text_frame.paragraphs[1].level = 1
    first.notes_slide.notes_text_frame.text = "wait until all are here"
    second = shown.slides.add_slide(shown.slide_layouts[6])
    second.shapes.add_group_shape().shapes.add_textbox(0, 0, 10, 10).text_frame.text = "inside a group"
    table = second.shapes.add_table(2, 2, 0, 0, 10, 10).table
    for at, text in enumerate(("Cup", "Price", "small", "3")):
        table.cell(at // 2, at % 2).text = text
    shown.save(str(path))
    return path


def sheets(path: Path) -> Path:
    """A sheet with a title above its table and an empty row in it, and one without a header."""
    with xlsxwriter.Workbook(path) as book:
        costs = book.add_worksheet("Costs 24")
        costs.write(1, 0, "Budget of the year")
        for row, cells in ((2, ["Item", "Price"]), (3, ["tea", 3.5]), (6, ["milk", 2])):
            costs.write_row(row, 0, cells)
        book.add_worksheet("Plain").write_row(0, 0, [1, 2, 3])
    return path


def book(
    path: Path, chapters: dict[str, str], more: dict[str, bytes] | None = None, order: list[str] | None = None
) -> Path:
    """chapters: name inside of OEBPS → body of the page."""
    items = "".join(
        f'<item id="c{i}" href="{name}" media-type="application/xhtml+xml"/>' for i, name in enumerate(chapters)
    )
    names = list(chapters)
    spine = "".join(f'<itemref idref="c{names.index(name)}"/>' for name in order or names)
    package = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{spine}</spine></package>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        )
        archive.writestr("OEBPS/content.opf", package)
        for name, body in chapters.items():
            page = f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'
            archive.writestr(f"OEBPS/{name}", page)
        for name, data in (more or {}).items():
            archive.writestr(name, data)
    return path


def read(path: Path) -> tuple[list[Block], list[str]]:
    """A document's blocks and notes, read here and not in a child. Raises Unreadable."""
    notes: list[str] = []
    reader = reader_of(path.name)
    assert reader, path
    return list(Reader.part(reader)().blocks(path, notes.append)), notes
