"""512 rows of "write the docstring of this function", made from Python's own standard library, always the same ones.

    python bench/docstrings.py OUT.jsonl [--rows 512] [--characters 1200]

A row is `{"messages": [user, assistant]}`. Rows depend only on the interpreter's version: files are read in order of
their names, every function with a docstring of its own is taken, and what is kept, and in which order, is decided by
a hash. A row is at most --characters long, question and answer together.
"""

import argparse
import ast
import hashlib
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
QUESTION = "Write the docstring of this Python function. Answer with the docstring's text only.\n\n```python\n{}\n```"


def functions(tree: ast.Module, source: str) -> Iterator[tuple[str, str]]:
    """(source without the docstring, docstring) of every documented function that has a body besides it."""
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        told = ast.get_docstring(node)
        first = node.body[0]
        if not told or first.end_lineno is None or node.end_lineno is None or first.lineno == node.lineno:
            continue
        start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        kept = lines[start - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
        yield inspect.cleandoc("\n".join(["", *kept])), told.strip()


def rows(library: Path, count: int, characters: int) -> list[dict[str, list[dict[str, str]]]]:
    """Return the rows with the smallest hashes; raise an error if the library has fewer than `count`."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(library.rglob("*.py")):
        if SKIPPED & set(path.relative_to(library).parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        for code, told in functions(tree, source):
            question = QUESTION.format(code)
            if len(told) >= 40 and len(question) + len(told) <= characters:
                found.setdefault(hashlib.sha256(f"{question}\0{told}".encode()).hexdigest(), (question, told))
    if len(found) < count:
        raise SystemExit(f"{library} has {len(found)} such functions, fewer than {count}")
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in (found[key] for key in sorted(found)[:count])
    ]


def write(out: Path, count: int = 512, characters: int = 1200) -> str:
    """Write the rows, one a line; returns the SHA-256 of the file."""
    made = rows(Path(sysconfig.get_path("stdlib")), count, characters)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode()
    out.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--characters", type=int, default=1200)
    asked = parser.parse_args()
    digest = write(asked.out, asked.rows, asked.characters)
    print(json.dumps({"rows": asked.rows, "sha256": digest, "python": sys.version.split()[0]}))


if __name__ == "__main__":
    main()
