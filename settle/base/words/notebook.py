"""Figures as HTML for a notebook: text of anybody is escaped, and there is no script and no style from elsewhere."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from settle.base.visible import visible

CELL = ' style="text-align: left; vertical-align: top"'


def html_table(rows: Sequence[Sequence[str]], columns: Sequence[str] = (), title: str = "") -> str:
    """Rows of text under the names of their columns."""
    head = "".join(f"<th{CELL}>{_text(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td{CELL}>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<caption{CELL}><b>{_text(title)}</b></caption>" if title else ""
    return f"<table>{caption}{f'<thead><tr>{head}</tr></thead>' if columns else ''}<tbody>{body}</tbody></table>"


def html_text(text: str) -> str:
    """Return a paragraph of HTML; line breaks stay."""
    return f'<p style="white-space: pre-wrap">{_text(text)}</p>'


def html_picture(png: bytes, description: str) -> str:
    """Return a picture that the notebook holds itself."""
    return f'<img alt="{_text(description)}" width="720" src="data:image/png;base64,{b64encode(png).decode()}">'


def _text(text: str) -> str:
    return escape(visible(text))
