"""E-mail addresses, keys and passwords, IP addresses: always counted, replaced by a fixed placeholder when asked."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from pydantic import Field

from settle.data.cleaning import Cleaning, Note, Sweep

_AT = re.compile(r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}(?![A-Za-z0-9-]|\.[A-Za-z])")
_LOCAL = re.compile(r"[A-Za-z0-9._%+-]+\Z")
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])")
# what must stand in a text before a pattern is worth trying, and the pattern
_KEYS = (
    ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("ASIA", re.compile(r"\bASIA[0-9A-Z]{16}\b")),
    ("AIza", re.compile(r"\bAIza[0-9A-Za-z_-]{35}(?![\w-])")),
    ("ghp_", re.compile(r"\bghp_[0-9A-Za-z]{36}\b")),
    ("gho_", re.compile(r"\bgho_[0-9A-Za-z]{36}\b")),
    ("github_pat_", re.compile(r"\bgithub_pat_[0-9A-Za-z_]{60,90}\b")),
    ("glpat-", re.compile(r"\bglpat-[0-9A-Za-z_-]{20}(?![\w-])")),
    ("hf_", re.compile(r"\bhf_[0-9A-Za-z]{30,40}\b")),
    ("xox", re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}")),
    ("sk-", re.compile(r"(?<![\w-])sk-(?=[\w-]*\d)[0-9A-Za-z_-]{20,}")),
    ("sk_live_", re.compile(r"\bsk_live_[0-9A-Za-z]{16,}")),
    ("eyJ", re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
    ("PRIVATE KEY", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{32,16384}?-----END [A-Z ]*PRIVATE KEY-----")),
)
_ASSIGNED = re.compile(
    r"(?i:api_?key|secret|token|passw(?:or)?d)[\"']?\s{0,4}[:=]\s{0,4}"
    r"[\"'](?P<value>(?=[^\"'\s]*\d)(?=[^\"'\s]*[A-Za-z])[\w/+=.~!@#$%^&*-]{16,200})[\"']"
)
_HINTS = ("key", "KEY", "Key", "ecret", "ECRET", "oken", "OKEN", "assw", "ASSW")

Span = tuple[int, int]


class Secrets(Cleaning):
    """Finds what should not be learned by heart; masks it when asked."""

    rank: ClassVar[int] = 40
    mask: Literal["none", "email", "keys", "ips", "all"] = Field("none", description="what is replaced")

    def start(self) -> Sweep:
        return _Secrets(self.mask)


class _Secrets(Sweep):
    def __init__(self, mask: str) -> None:
        self._mask = mask

    def mend(self, text: str, note: Note) -> str | None:
        for name, kind, placeholder, find in _FINDERS:
            spans = list(find(text))
            if not spans:
                continue
            note("found", kind, len(spans))
            if self._mask in (name, "all"):
                note("mended", f"{kind} masked", len(spans))
                text = _replace(text, spans, placeholder)
        return text


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for at in _AT.finditer(text):
        local = _LOCAL.search(text, max(at.start() - 64, 0), at.start())
        if local is not None:
            yield local.start(), at.end()


def _ips(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(found.group().rstrip(":"))
            except ValueError:
                continue
            if address.is_global:
                yield found.start(), found.start() + len(found.group().rstrip(":"))


def _keys(text: str) -> Iterator[Span]:
    spans = [found.span() for hint, pattern in _KEYS if hint in text for found in pattern.finditer(text)]
    if any(hint in text for hint in _HINTS):
        spans += [found.span("value") for found in _ASSIGNED.finditer(text)]
    end = 0
    for span in sorted(spans):
        if span[0] >= end:
            yield span
            end = span[1]


def _replace(text: str, spans: list[Span], placeholder: str) -> str:
    pieces, position = [], 0
    for start, end in sorted(spans):
        pieces += [text[position:start], placeholder]
        position = end
    return "".join([*pieces, text[position:]])


_FINDERS: tuple[tuple[str, str, str, Callable[[str], Iterator[Span]]], ...] = (
    ("keys", "keys and passwords", "<key>", _keys),
    ("email", "e-mail addresses", "<email>", _emails),
    ("ips", "IP addresses", "<ip>", _ips),
)
