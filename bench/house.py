"""Measures the house: types, imports, cycles, sizes. `python bench/house.py [FOLDER]` prints a figure a line.

`tests/test_house.py` holds the limits; this prints the figures, also of one room: `bench/house.py settle/server`.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_MODULES, MOST_METHODS, MOST_FUNCTION, MOST_FILE = 15, 15, 60, 400
PAST = {"told", "said"}  # verbs of the past that are no names
# Participles and gerunds that are the field's nouns, or names that people write.
ESTABLISHED = {"zed", "cleaning", "encoding", "embedding", "forgetting", "pretrained", "settled"}
PARTICIPLE = re.compile(r"[a-z]*(ing|[^e]ed)$|taught|shrunk|grown|fallen|written|chosen|told|said|made|kept|found")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(folder.rglob("*.py"))


def non_blank(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def num_any(tree: ast.AST) -> int:
    """Uses of typing.Any, wherever it stands, its imports too."""
    return sum(
        (isinstance(node, ast.Name) and node.id == "Any") or (isinstance(node, ast.alias) and node.name == "Any")
        for node in ast.walk(tree)
    )


def own_imports(tree: ast.AST, known: set[str]) -> Iterator[tuple[str, ast.stmt]]:
    """Modules of settle that a file imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "settle":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in known else node.module), node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield alias.name, node


def in_functions(tree: ast.AST) -> int:
    """Import statements of our own inside functions."""
    found = {
        (inner.lineno, inner.col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom) and (inner.module or "").split(".")[0] == "settle"
    }
    return len(found)


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def long_things(path: Path, text: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(what, where) for every file, function and class past its limit."""
    where, lines = str(path.relative_to(ROOT)), text.splitlines()
    if len(lines) > MOST_FILE:
        yield f"files over {MOST_FILE} lines", f"{where} ({len(lines)})"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = non_blank("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            if size > MOST_FUNCTION:
                yield f"functions over {MOST_FUNCTION} lines", f"{where}:{node.name} ({size})"
        elif isinstance(node, ast.ClassDef):
            methods = sum(isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) for item in node.body)
            if methods > MOST_METHODS:
                yield f"classes over {MOST_METHODS} methods", f"{where}:{node.name} ({methods})"


def past_names(tree: ast.AST) -> int:
    """Variables, arguments and attributes that are called told or said."""
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    stored += [n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)]
    stored += [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    stored += [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return sum(name.strip("_") in PAST for name in stored)


def is_bare_participle(path: Path) -> bool:
    """Whether a module is named by one word that does not say who does what, such as `growing` or `told`."""
    name = path.stem.strip("_")
    return "_" not in name and name not in ESTABLISHED and bool(PARTICIPLE.fullmatch(name))


def measure(folder: Path) -> dict[str, object]:
    """Every figure of the house, by name."""
    paths = sources(folder)
    known = {module_name(path) for path in sources(ROOT / "settle")}
    lines = anys = hidden = past = 0
    edges: dict[str, set[str]] = defaultdict(set)
    long: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines, anys = lines + non_blank(text), anys + num_any(tree)
        hidden, past = hidden + in_functions(tree), past + past_names(tree)
        edges[module_name(path)] |= {name for name, _ in own_imports(tree, known) if name != module_name(path)}
        for what, where in long_things(path, text, tree):
            long[what].append(where)
    folders = Counter(path.parent for path in paths if path.name != "__init__.py")
    full = [f"{place.relative_to(ROOT)} ({n})" for place, n in folders.items() if n > MOST_MODULES]
    return {
        "files": len(paths),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths),
        "non-blank lines": lines,
        "Any per 1,000 lines": round(1000 * anys / max(1, lines), 1),
        "imports of our own inside functions": hidden,
        "import cycles, with in-function and TYPE_CHECKING imports": cycles(edges),
        f"folders over {MOST_MODULES} modules": full,
        f"classes over {MOST_METHODS} methods": long[f"classes over {MOST_METHODS} methods"],
        f"functions over {MOST_FUNCTION} lines": long[f"functions over {MOST_FUNCTION} lines"],
        f"files over {MOST_FILE} lines": long[f"files over {MOST_FILE} lines"],
        "identifiers told or said": past,
        "modules named by a bare participle": [str(p.relative_to(ROOT)) for p in paths if is_bare_participle(p)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="settle")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    figures = measure((ROOT / asked.folder).resolve())
    if asked.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        if isinstance(value, list):
            print(f"{name}: {len(value)}")
            for item in value:
                print(f"    {item if isinstance(item, str) else ' · '.join(item)}")
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
