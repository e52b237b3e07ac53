"""E-mail addresses, keys and passwords, IP addresses: always counted, replaced by a fixed placeholder when asked."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from pydantic import Field

from settle.data.cleaning import Cleaning, Note

# each begins with what is rare, so that a search passes quickly over ordinary text; what may not stand before a match
# is looked at afterwards
_AT = re.compile(r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}(?![A-Za-z0-9-]|\.[A-Za-z])")
_LOCAL = re.compile(r"[A-Za-z0-9._%+-]+\Z")
# an address but its first number, and that number; of IPv6 only what is assigned to the internet, 2000::/3
_IPS = (
    (re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)"), re.compile(r"\d{1,3}\Z")),
    (re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{0,32}(?!\w)"), re.compile(r"[23][0-9A-Fa-f]{3}\Z")),
)
_WORD_BEFORE = re.compile(r"[\w.:-]")
_KEYS = tuple(
    (hint, re.compile(hint + rest))
    for hint, rest in (
        ("AKIA", r"[0-9A-Z]{16}\b"),
        ("ASIA", r"[0-9A-Z]{16}\b"),
        ("AIza", r"[0-9A-Za-z_-]{35}(?![\w-])"),
        ("ghp_", r"[0-9A-Za-z]{36}\b"),
        ("gho_", r"[0-9A-Za-z]{36}\b"),
        ("github_pat_", r"[0-9A-Za-z_]{60,90}\b"),
        ("glpat-", r"[0-9A-Za-z_-]{20}(?![\w-])"),
        ("hf_", r"[0-9A-Za-z]{30,40}\b"),
        ("xox", r"[abprs]-[0-9A-Za-z-]{10,}"),
        ("sk-", r"(?=[\w-]*\d)[0-9A-Za-z_-]{20,}"),
        ("sk_live_", r"[0-9A-Za-z]{16,}"),
        ("eyJ", r"[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
        ("-----BEGIN ", r"[A-Z ]{0,20}PRIVATE KEY-----[\s\S]{32,16384}?-----END [A-Z ]{0,20}PRIVATE KEY-----"),
    )
)
_ASSIGNED = re.compile(r"[:=]\s{0,4}[\"'](?P<value>(?=[^\"'\s]*\d)(?=[^\"'\s]*[A-Za-z])[\w/+=~!@#$%^&*-]{16,200})[\"']")
_SECRET_NAME = re.compile(r"(?i:(?:api|access|secret|private|auth)_?key|secret|token|passw(?:or)?d)[\"']?\s{0,4}\Z")

Span = tuple[int, int]
KEYS = "keys and passwords"


class Secrets(Cleaning):
    """Finds what should not be learned by heart; masks it when asked."""

    rank: ClassVar[int] = 40
    mask: Literal["none", "email", "keys", "ips", "all"] = Field("none", description="kind of secrets to replace")

    def mend(self, text: str, note: Note) -> str | None:
        for name, kind, placeholder, find in _FINDERS:
            spans = list(find(text))
            if not spans:
                continue
            for start, _ in spans:
                note("found", kind, 1, start)
            if self.mask in (name, "all"):
                note("mended", f"{kind} masked", len(spans))
                text = _replace(text, spans, placeholder)
        return text


def secrets_of(text: str) -> Iterator[tuple[str, int]]:
    """Yield every secret in a text: its kind, and the character at which it begins."""
    for _, kind, _, find in _FINDERS:
        for start, _ in find(text):
            yield kind, start


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for at in _AT.finditer(text):
        local = _LOCAL.search(text, max(at.start() - 64, 0), at.start())
        if local is not None:
            yield local.start(), at.end()


def _ips(text: str) -> Iterator[Span]:
    for rest, first in _IPS:
        for matches in rest.finditer(text):
            start = matches.start()
            head = first.search(text, max(start - 4, 0), start)
            if head is None or _inside_word(text, head.start()):
                continue
            written = text[head.start() : matches.end()].rstrip(":")
            try:
                address = ipaddress.ip_address(written)
            except ValueError:
                continue
            if address.is_global and not _looks_like_version(written):
                yield head.start(), head.start() + len(written)


def _keys(text: str) -> Iterator[Span]:
    spans = [matches.span() for hint, pattern in _KEYS if hint in text for matches in pattern.finditer(text)]
    spans = [(start, end) for start, end in spans if not _inside_word(text, start)]
    spans += [
        matches.span("value")
        for matches in _ASSIGNED.finditer(text)
        if _SECRET_NAME.search(text[max(matches.start() - 16, 0) : matches.start()])
    ]
    end = 0
    for span in sorted(spans):
        if span[0] >= end:
            yield span
            end = span[1]


def _looks_like_version(written: str) -> bool:
    """Return whether numbers are more likely a version or a section than an address, such as 3.1.1.6."""
    return "." in written and sum(int(number) >= 10 for number in written.split(".")) < 2


def _inside_word(text: str, start: int) -> bool:
    return start > 0 and _WORD_BEFORE.match(text[start - 1]) is not None


def _replace(text: str, spans: list[Span], placeholder: str) -> str:
    pieces, position = [], 0
    for start, end in sorted(spans):
        pieces += [text[position:start], placeholder]
        position = end
    return "".join([*pieces, text[position:]])


_FINDERS: tuple[tuple[str, str, str, Callable[[str], Iterator[Span]]], ...] = (
    ("keys", KEYS, "<key>", _keys),
    ("email", "e-mail addresses", "<email>", _emails),
    ("ips", "IP addresses", "<ip>", _ips),
)
