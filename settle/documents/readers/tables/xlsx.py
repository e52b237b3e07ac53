"""Spreadsheets of Excel and LibreOffice, by calamine."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable, table_rows
from settle.documents.readers import Reader
from settle.documents.readers.office import check_zip

_NO_ZIP = ".xls"


class Xlsx(Reader):
    """A row is a block below the header of its sheet; a place is a cell, as Excel opens it: `a.xlsx#Costs!A12`."""

    suffixes: ClassVar[tuple[str, ...]] = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
    packages: ClassVar[tuple[str, ...]] = ("python_calamine",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        from python_calamine import CalamineError, PasswordError, load_workbook

        if path.suffix.lower() != _NO_ZIP:
            check_zip(path, "spreadsheet")
        try:
            book = load_workbook(str(path))
        except PasswordError:
            raise Unreadable("encrypted: it needs a password") from None
        except CalamineError as e:
            raise Unreadable(f"damaged: {e}") from None
        for name in book.sheet_names:
            sheet = book.get_sheet_by_name(name)
            if sheet.start:
                yield Block("heading", name, _place(name, sheet.start[0] + 1), level=1)
                rows = enumerate(sheet.iter_rows(), 1)
                yield from table_rows((_place(name, row), [_shown(cell) for cell in cells]) for row, cells in rows)


def _place(sheet: str, row: int) -> Place:
    quoted = sheet if sheet.isalnum() else "'" + sheet.replace("'", "''") + "'"
    return Place(part=f"{quoted}!A{row}")


def _shown(cell: object) -> str:
    """Return a cell as text; numbers are floats in every sheet, and whole ones are shown as such."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
