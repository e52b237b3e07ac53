"""Foreign text made safe to show: what a terminal would obey, or would show as something else, becomes visible signs.

Text of documents, models, files and their names may hold escape sequences (C0 and C1 controls, DEL), which set titles,
fill clipboards and erase screens, bidirectional overrides, which show letters in another order than they are in, and
bytes of file names that are no text. Each becomes the escape that Python writes for it: `\\x1b`, `\\u202e`. In the
HTML for a notebook all text is escaped, and there is no script and no style from elsewhere.
"""

import os
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_TEXT = re.compile(f"\r\n|[{_CONTROLS}]")
_LINE = re.compile(f"[\t\n\u2028\u2029{_CONTROLS}]")
_SHORT = {"\r\n": "\n", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF  # what `os.fsdecode` makes of bytes 0x80 to 0xFF that are no UTF-8


def visible(text: str) -> str:
    """`text` with every control character but newline and tab as a visible sign."""
    return _TEXT.sub(_sign, text)


def visible_line(text: str) -> str:
    """`text` on one line: tabs and line breaks are visible signs too. For names, headings and cells of a table."""
    return _LINE.sub(_sign, text)


def visible_name(path: str | os.PathLike[str]) -> str:
    """Return a path for people to read, also one with bytes that are no text."""
    return visible_line(os.fspath(path))


def _sign(match: re.Match[str]) -> str:
    text = match.group()
    if text in _SHORT:
        return _SHORT[text]
    code = ord(text)
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# --- HTML for a notebook ---

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
