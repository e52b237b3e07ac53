"""Merges our entry into a configuration file of others, and leaves everything else in it unchanged.

YAML is changed as text, at places that its parser reports, so that comments and layout stay. The result is parsed again
and compared with what it should be; where they differ, nothing is written.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import yaml

from settle.connect.clients import CannotMerge

COMMENT = re.compile(r"(?<!\S)#")

Entry = dict[str, object]
T = TypeVar("T")


def merge_yaml(old: str | None, head: Mapping[str, object], keys: Sequence[str], entry: Entry, name: str) -> str:
    """Return YAML with `entry` in the list under `keys`, replacing the one that has the same `name`.

    head: the beginning of a new file. Raises CannotMerge."""
    if old is None or not old.strip():
        return (old or "") + _dump({**head, **_nested(keys, entry)})
    try:
        root, before = yaml.compose(old, yaml.SafeLoader), yaml.safe_load(old)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CannotMerge(f"it is not YAML that can be extended: {reason[:200]}", _dump(_nested(keys, entry))) from None
    if root is None and before is None:  # nothing but comments
        return old.rstrip("\n") + "\n" + merge_yaml(None, head, keys, entry, name)
    entry = _current(before, keys, entry, name) | entry
    expected = _expected(before, keys, entry, name)
    if expected is not None and expected == before:
        return old
    newline = "\r\n" if "\r\n" in old else "\n"
    try:
        text = _placed(old if old.endswith("\n") else old + newline, root, list(keys), entry, name, newline)
        after = yaml.safe_load(text)
    except (yaml.YAMLError, _UnknownLayout):
        after = None
    if after is None or after != expected:
        raise CannotMerge("its layout cannot be extended safely", _dump(_nested(keys, entry)))
    return text


def merge_json(old: str | None, empty: T, change: Callable[[T], T], part: str) -> str:
    """Return JSON after `change` of its value.

    part: what to add by hand. Raises CannotMerge for what is not plain JSON, such as comments, which would be lost."""
    if old is None or not old.strip():
        return json.dumps(change(empty), indent=2, ensure_ascii=False) + "\n"
    try:
        value = json.loads(old, object_pairs_hook=_without_duplicates)
        if type(value) is not type(empty):
            raise ValueError(f"it is a {type(value).__name__}, not a {type(empty).__name__}")
        changed = change(value)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
        raise CannotMerge(f"it is not plain JSON of the expected form: {str(e)[:200]}", part) from None
    indent = re.search(r"\n([ \t]+)\S", old)
    text = json.dumps(changed, indent=indent[1] if indent else 2, ensure_ascii=False)
    return text + ("\n" if old.endswith("\n") else "")


class _UnknownLayout(Exception):
    """A layout that we cannot extend."""


def _placed(text: str, root: yaml.Node, keys: list[str], entry: Entry, name: str, newline: str) -> str:
    """`text` with the entry; the caller checks the result."""
    node, depth = root, 0
    while keys:
        if not isinstance(node, yaml.MappingNode) or node.flow_style:
            raise _UnknownLayout
        values = [value for key, value in node.value if key.value == keys[0]]
        if len(values) > 1 or (not values and not node.value):
            raise _UnknownLayout
        if not values:  # a block of our own, after the last line of the mapping
            block = _dump(_nested(keys, entry))
            return _inserted(text, node, block, node.value[0][0].start_mark.column, newline)
        node, depth, keys = values[0], node.value[0][0].start_mark.column, keys[1:]
    if isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index:  # nothing after the key
        at = text.index("\n", text.rindex(":", 0, node.start_mark.index)) + 1
        return text[:at] + _indented(_dump([entry]), depth + 2, newline) + text[at:]
    if not isinstance(node, yaml.SequenceNode):
        raise _UnknownLayout
    same = [item for item in node.value if _name_of(item, name) == entry[name]]
    if node.flow_style:
        return _in_flow(text, node, same, entry, depth, newline)
    if same:
        start, end = same[0].start_mark, _end(same[0])
        if COMMENT.search(text, start.index, end):
            raise _UnknownLayout
        block = _indented(_dump(entry), start.column, newline).strip()
        return text[: start.index] + block + text[end:]
    return _inserted(text, node, _dump([entry]), node.start_mark.column, newline)


def _in_flow(text: str, node: yaml.SequenceNode, same: list[yaml.Node], entry: Entry, depth: int, newline: str) -> str:
    """Return a list in brackets with the entry: JSON is YAML there. An empty one becomes a block."""
    start, end = node.start_mark.index, node.end_mark.index
    if not node.value:
        rest = text[end:].partition("\n")
        if text[start:end].strip("[] \t") or rest[0].strip():
            raise _UnknownLayout
        return text[:start].rstrip(" ") + newline + _indented(_dump([entry]), depth + 2, newline) + rest[2]
    written = json.dumps(entry, ensure_ascii=False)
    if same:
        return text[: same[0].start_mark.index] + written + text[same[0].end_mark.index :]
    last = node.value[-1].end_mark.index
    return text[:last] + ", " + written + text[last:]


def _inserted(text: str, node: yaml.Node, block: str, column: int, newline: str) -> str:
    """`block` on lines of its own, after the last line of `node`."""
    end = _end(node)
    at = end if text[end - 1 : end] == "\n" else text.index("\n", end) + 1
    return text[:at] + _indented(block, column, newline) + text[at:]


def _end(node: yaml.Node) -> int:
    """Return the end of the last value in a node; the parser ends a block only where the next one begins."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    index: int = node.end_mark.index
    return index


def _name_of(node: yaml.Node, name: str) -> object:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value.value for key, value in pairs if key.value == name), None)


def _expected(before: object, keys: Sequence[str], entry: Entry, name: str) -> Entry | None:
    """Return the value that the file should have afterwards; None where that is unclear."""
    if not isinstance(before, dict | None):
        return None
    value: Entry = dict(before or {})
    if len(keys) > 1:
        return value | {keys[0]: _expected(value.get(keys[0]), keys[1:], entry, name)}
    items = value.get(keys[0]) or []
    if not isinstance(items, list):
        return None
    places = [i for i, item in enumerate(items) if isinstance(item, dict) and item.get(name) == entry[name]]
    changed = [entry if i in places[:1] else item for i, item in enumerate(items)]
    return value | {keys[0]: changed if places else [*items, entry]}


def _current(value: object, keys: Sequence[str], entry: Entry, name: str) -> Entry:
    """Return the entry as it is now, with fields that the user added; {} when there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else []
    return next((item for item in items if isinstance(item, dict) and item.get(name) == entry[name]), {})


def _nested(keys: Sequence[str], entry: Entry) -> Entry:
    value: object = [entry]
    for key in reversed(keys[1:]):
        value = {key: value}
    return {keys[0]: value}


def _dump(value: object) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _indented(text: str, column: int, newline: str) -> str:
    return "".join(" " * column + line + newline for line in text.splitlines())


def _without_duplicates(pairs: list[tuple[str, object]]) -> Entry:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value
