"""Our entry put into a configuration file that others wrote, and everything else in it left as it is.

YAML is changed as text, at places that its parser names, so that comments and layout stay. Whatever comes of it is
parsed again and compared with what was meant; where they differ, nothing is written.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from settle.connect.clients import CannotMerge

COMMENT = re.compile(r"(?<!\S)#")


def yaml_merged(old: str | None, head: dict[str, Any], keys: Sequence[str], entry: dict[str, Any], name: str) -> str:
    """YAML with `entry` in the list under `keys`, over the one that has the same `name`. head: what a file
    that did not exist begins with. Raises CannotMerge."""
    if old is None or not old.strip():
        inner: Any = [entry]
        for key in reversed(keys):
            inner = {key: inner}
        return (old or "") + _dumped(head | inner)
    try:
        root, before = yaml.compose(old, yaml.SafeLoader), yaml.safe_load(old)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        said = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CannotMerge(f"it is no YAML that could be extended: {said[:200]}", _by_hand(keys, entry)) from None
    if root is None and before is None:  # nothing but comments
        return old.rstrip("\n") + "\n" + yaml_merged(None, head, keys, entry, name)
    entry = _kept(before, keys, entry, name) | entry
    meant = _meant(before, keys, entry, name)
    if meant is not None and meant == before:
        return old
    newline = "\r\n" if "\r\n" in old else "\n"
    try:
        text = _placed(old if old.endswith("\n") else old + newline, root, list(keys), entry, name, newline)
        after = yaml.safe_load(text)
    except (yaml.YAMLError, _Unknown):
        after = None
    if after is None or after != meant:
        raise CannotMerge("it is laid out in a way that cannot be extended safely", _by_hand(keys, entry))
    return text


def json_merged(old: str | None, empty: Any, change: Callable[[Any], Any], part: str) -> str:
    """JSON after `change` of its value. part: what to put there by hand. Raises CannotMerge for what is no plain JSON,
    such as comments in it, which would be lost."""
    if old is None or not old.strip():
        return json.dumps(change(empty), indent=2, ensure_ascii=False) + "\n"
    try:
        value = json.loads(old, object_pairs_hook=_without_doubles)
        if type(value) is not type(empty):
            raise ValueError(f"it is a {type(value).__name__}, not a {type(empty).__name__}")
        changed = change(value)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
        raise CannotMerge(f"it is no plain JSON of the form expected: {str(e)[:200]}", part) from None
    indent = re.search(r"\n([ \t]+)\S", old)
    text = json.dumps(changed, indent=indent[1] if indent else 2, ensure_ascii=False)
    return text + ("\n" if old.endswith("\n") else "")


class _Unknown(Exception):
    """A layout that we do not know."""


def _placed(text: str, root: Any, keys: list[str], entry: dict[str, Any], name: str, newline: str) -> str:
    """`text` with the entry; checked by the caller."""
    node, depth = root, 0
    while keys:
        if not isinstance(node, yaml.MappingNode) or node.flow_style:
            raise _Unknown
        found = [value for key, value in node.value if key.value == keys[0]]
        if len(found) > 1 or (not found and not node.value):
            raise _Unknown
        if not found:  # a block of our own, behind the last line of the mapping
            inner: Any = [entry]
            for key in reversed(keys):
                inner = {key: inner}
            return _inserted(text, node, _dumped(inner), node.value[0][0].start_mark.column, newline)
        node, depth, keys = found[0], node.value[0][0].start_mark.column, keys[1:]
    if isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index:  # nothing behind the key
        at = text.index("\n", text.rindex(":", 0, node.start_mark.index)) + 1
        return text[:at] + _indented(_dumped([entry]), depth + 2, newline) + text[at:]
    if not isinstance(node, yaml.SequenceNode):
        raise _Unknown
    same = [item for item in node.value if _name_of(item, name) == entry[name]]
    if node.flow_style:
        return _in_flow(text, node, same, entry, depth, newline)
    if same:
        start, end = same[0].start_mark, _end(same[0])
        if COMMENT.search(text, start.index, end):
            raise _Unknown
        block = _indented(_dumped(entry), start.column, newline).strip()
        return text[: start.index] + block + text[end:]
    return _inserted(text, node, _dumped([entry]), node.start_mark.column, newline)


def _in_flow(text: str, node: Any, same: list[Any], entry: dict[str, Any], depth: int, newline: str) -> str:
    """A list in brackets: JSON is YAML there. An empty one becomes a block."""
    start, end = node.start_mark.index, node.end_mark.index
    if not node.value:
        rest = text[end:].partition("\n")
        if text[start:end].strip("[] \t") or rest[0].strip():
            raise _Unknown
        return text[:start].rstrip(" ") + newline + _indented(_dumped([entry]), depth + 2, newline) + rest[2]
    written = json.dumps(entry, ensure_ascii=False)
    if same:
        return text[: same[0].start_mark.index] + written + text[same[0].end_mark.index :]
    last = node.value[-1].end_mark.index
    return text[:last] + ", " + written + text[last:]


def _inserted(text: str, node: Any, block: str, column: int, newline: str) -> str:
    """`block` on lines of its own, behind the last line that belongs to `node`."""
    end = _end(node)
    at = end if text[end - 1 : end] == "\n" else text.index("\n", end) + 1
    return text[:at] + _indented(block, column, newline) + text[at:]


def _end(node: Any) -> int:
    """Where the last thing in a node ends; the parser ends a block only where the next one begins."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    index: int = node.end_mark.index
    return index


def _name_of(node: Any, name: str) -> Any:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value.value for key, value in pairs if key.value == name), None)


def _meant(before: Any, keys: Sequence[str], entry: dict[str, Any], name: str) -> Any:
    """The value that the file should have afterwards; None where that cannot be said."""
    if not isinstance(before, dict | None):
        return None
    found = dict(before or {})
    if len(keys) > 1:
        return found | {keys[0]: _meant(found.get(keys[0]), keys[1:], entry, name)}
    items = found.get(keys[0]) or []
    if not isinstance(items, list):
        return None
    places = [i for i, item in enumerate(items) if isinstance(item, dict) and item.get(name) == entry[name]]
    changed = [entry if i in places[:1] else item for i, item in enumerate(items)]
    return found | {keys[0]: changed if places else [*items, entry]}


def _kept(value: Any, keys: Sequence[str], entry: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry as it is there now, with what a person added to it; {} when there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else []
    return next((item for item in items if isinstance(item, dict) and item.get(name) == entry[name]), {})


def _by_hand(keys: Sequence[str], entry: dict[str, Any]) -> str:
    inner: Any = [entry]
    for key in reversed(keys):
        inner = {key: inner}
    return _dumped(inner)


def _dumped(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _indented(text: str, column: int, newline: str) -> str:
    return "".join(" " * column + line + newline for line in text.splitlines())


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
