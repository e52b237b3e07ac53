"""What the benches of documents share: Debian packages unpacked, DocBook as Markdown, phrases as they are compared."""

import html
import re
import subprocess
from pathlib import Path
from typing import Any

from lxml import etree

LISTS = ("itemizedlist", "orderedlist", "variablelist")
LEFT_OUT = ("indexterm", "mediaobject", "sect1info", "footnote", "screenshot")


def unpacked(folder: Path, packages: list[str]) -> list[Path]:
    """Return the packages' files below `folder`."""
    debs, roots = folder / "packages", []
    debs.mkdir(parents=True, exist_ok=True)
    for name in packages:
        root = folder / "unpacked" / name
        if not root.is_dir():
            if not list(debs.glob(f"{name}_*.deb")):
                subprocess.run(["apt-get", "download", name], cwd=debs, check=True, stderr=subprocess.DEVNULL)
            root.parent.mkdir(exist_ok=True)
            subprocess.run(["dpkg", "-x", next(debs.glob(f"{name}_*.deb")), root], check=True)
        roots.append(root)
    return roots


def plain(text: str) -> str:
    """Without marks, with words whole that the end of a line cut, in lower case."""
    text = re.sub(r"-\s+(?=[a-z])", "", text)
    return " ".join(re.sub(r"[*`_|“”]", " ", text).lower().replace("’", "'").split())


def markdown(docbook: str) -> str:
    """Return an article of KStars' handbook as Markdown."""
    keep = ("amp", "lt", "gt", "quot", "apos")
    known = re.sub(
        r"&(\w[\w-]*);",
        lambda m: m[0] if m[1] in keep else other if (other := html.unescape(m[0])) != m[0] else m[1],
        docbook,
    )
    lines: list[str] = []
    _walk(etree.fromstring(known.encode(), etree.XMLParser(recover=True)), 1, lines)
    return "\n".join(lines)


def _walk(element: Any, depth: int, lines: list[str]) -> None:
    for child in element:
        if not isinstance(child.tag, str):
            continue
        if child.tag == "title":
            lines.append(f"{'#' * depth} {_flat(child)}\n")
        elif child.tag == "para":
            said = child.text or ""
            for inner in child:
                if inner.tag in LISTS:
                    lines += [f"{' '.join(said.split())}\n"] if said.strip() else []
                    lines.append(_list(inner))
                    said = ""
                elif isinstance(inner.tag, str) and inner.tag not in LEFT_OUT:
                    said += _marked(inner)
                said += inner.tail or ""
            lines += [f"{' '.join(said.split())}\n"] if said.strip() else []
        elif child.tag in LISTS:
            lines.append(_list(child))
        elif child.tag not in LEFT_OUT:
            _walk(child, depth + child.tag.startswith("sect"), lines)


def _list(of: Any) -> str:
    items = []
    for item in of.iter("listitem"):
        term = f"{_flat(item.getparent().find('term'))}: " if of.tag == "variablelist" else ""
        items.append(f"- {term}{_flat(item)}\n")
    return "".join(items)


def _flat(element: Any) -> str:
    return " ".join(_text(element).split())


def _text(element: Any) -> str:
    said = element.text or ""
    for child in element:
        if isinstance(child.tag, str) and child.tag not in LEFT_OUT:
            said += _marked(child)
        said += child.tail or ""
    return said


def _marked(element: Any) -> str:
    mark = {"superscript": "^", "subscript": "_"}.get(element.tag, "")
    return f"{mark}{_text(element).strip()}" if mark else _text(element)
