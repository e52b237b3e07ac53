"""Merges our entry into a configuration file of others, and leaves everything else in it unchanged.

YAML is changed as text, at places that its parser reports, so that comments and layout stay. The result is parsed again
and compared with what it should be; where they differ, nothing is written.
"""

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from settle.base.errors import SettleError

COMMENT = re.compile(r"(?<!\S)#")

Entry = dict[str, object]
T = TypeVar("T")


class CannotMerge(SettleError):
    """A client's file cannot be extended without losing content; `fix` is what to add by hand."""


@dataclass(frozen=True)
class ConfigFile:
    """A file that a client reads."""

    path: Path
    part: str  # what is added, to show
    merged: Callable[[str | None], str]  # adds it to the file's text, None where there is none; raises CannotMerge


def yaml_file(path: Path, head: Entry, keys: Sequence[str], entry: Entry) -> ConfigFile:
    """Return a YAML file that gets `entry` in the list under `keys`, see `merge_yaml`."""
    return ConfigFile(path, merge_yaml(None, {}, keys, entry), lambda old: merge_yaml(old, head, keys, entry))


def json_file(path: Path, part: object, empty: T, change: Callable[[T], T]) -> ConfigFile:
    """Return a JSON file whose value, at first `empty`, gets `change`. part: what to add by hand."""
    shown = json.dumps(part, indent=2)
    return ConfigFile(path, shown, lambda old: merge_json(old, empty, change, shown))


def json_entry(path: Path, key: str, entry: Entry) -> ConfigFile:
    """Return a JSON file with `entry` under the name settle in the object `key`; the other entries of that stay."""
    empty: dict[str, Entry] = {}

    def change(value: dict[str, Entry]) -> dict[str, Entry]:
        return {**value, key: {**value.get(key, {}), "settle": entry}}

    return json_file(path, change(empty), empty, change)


def merge_yaml(old: str | None, head: Entry, keys: Sequence[str], entry: Entry) -> str:
    """Return YAML with `entry` in the list under `keys`, replacing the one that has the same name.

    head: the beginning of a new file. Raises CannotMerge."""
    if old is None or not old.strip():
        return (old or "") + _dump({**head, **_nested(keys, entry)})
    try:
        root, before = yaml.compose(old, yaml.SafeLoader), yaml.safe_load(old)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CannotMerge(f"it is not YAML that can be extended: {reason[:200]}", _dump(_nested(keys, entry))) from None
    if root is None and before is None:  # nothing but comments
        return old.rstrip("\n") + "\n" + merge_yaml(None, head, keys, entry)
    newline = "\r\n" if "\r\n" in old else "\n"
    try:
        expected, entry = _expected(before, keys, entry)
        if expected == before:
            return old
        text = _placed(old if old.endswith("\n") else old + newline, root, list(keys), entry, newline)
        if yaml.safe_load(text) == expected:
            return text
    except (yaml.YAMLError, _UnknownLayout, AttributeError, TypeError):
        pass  # a value of another kind than a list of objects
    raise CannotMerge("its layout cannot be extended safely", _dump(_nested(keys, entry)))


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


def _placed(text: str, root: yaml.Node, keys: list[str], entry: Entry, newline: str) -> str:
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
    same = [item for item in node.value if _name_of(item) == entry["name"]]
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


def _name_of(node: yaml.Node) -> object:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value.value for key, value in pairs if key.value == "name"), None)


def _expected(before: Any, keys: Sequence[str], entry: Entry) -> tuple[Entry, Entry]:
    """Return the value that the file should have afterwards, and our entry in it, with fields that the user added.

    Raises AttributeError or TypeError where there is no list of objects under the keys.
    """
    value: Entry = copy.deepcopy(before) or {}
    place: Any = value
    for key in keys[:-1]:
        place[key] = place = place.get(key) or {}
    items = place[keys[-1]] = place.get(keys[-1]) or []
    at = next((i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == entry["name"]), None)
    if at is None:
        items.append(entry)
    else:
        entry = items[at] = items[at] | entry
    return value, entry


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
