"""Measures the house: types, imports, cycles, sizes. `python bench/house.py [FOLDER]` prints a figure a line.

`tests/test_house.py` holds the limits; this prints the figures, also of one room: `bench/house.py settle/server`.
"""

import argparse
import ast
import functools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_FUNCTION = 60
SMALL_MODULE, FEW_LINES = 80, 40  # lines of a module that belongs into its only importer; of a file that is hardly one
UNTYPED = re.compile(r"(?:dict|Mapping)\[str, object\]")
PAST = {"told", "said"}  # verbs of the past that are no names
# Participles and gerunds that are the field's nouns, or names that people write.
ESTABLISHED = {"zed", "cleaning", "encoding", "embedding", "forgetting", "pretrained", "settled"}
Nodes = Sequence[ast.AST]  # all of a module
PARTICIPLE = re.compile(r"[a-z]*(ing|[^e]ed)$|taught|shrunk|grown|fallen|written|chosen|told|said|made|kept|found")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(folder.rglob("*.py"))


def non_blank(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def num_any(nodes: Nodes) -> int:
    """Return the number of uses of typing.Any, imports included."""
    return sum(
        (isinstance(node, ast.Name) and node.id == "Any") or (isinstance(node, ast.alias) and node.name == "Any")
        for node in nodes
    )


def own_imports(nodes: Nodes, known: set[str]) -> Iterator[tuple[str, ast.stmt]]:
    """Modules of settle that a file imports, wherever the import stands."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "settle":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in known else node.module), node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield alias.name, node


def in_functions(nodes: Nodes) -> int:
    """Import statements of our own inside functions."""
    functions = [(n.lineno, n.end_lineno or 0) for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sum(
        any(start < node.lineno <= end for start, end in functions)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "settle"
    )


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other (Tarjan's strongly connected components of more than one)."""
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


def long_functions(path: Path, text: str, nodes: Nodes) -> Iterator[str]:
    """Yield every function over the limit."""
    lines = text.splitlines()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = non_blank("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            if size > MOST_FUNCTION:
                yield f"{path.relative_to(ROOT)}:{node.name} ({size})"


@functools.cache
def is_family(folder: Path) -> bool:
    """Return whether a folder's `__init__` holds the contract of a family of parts."""
    init = folder / "__init__.py"
    return (
        init.exists()
        and re.search(r"^class \w+\(([^)]*, *)?Part\b", init.read_text(encoding="utf-8"), re.M) is not None
    )


def found_by_its_place(path: Path, text: str) -> bool:
    """Return whether nothing has to import a module: a part of a family, a package's `__init__`, a child's program."""
    return path.stem.startswith("__") or any(map(is_family, path.parents[:2])) or "\nif __name__ ==" in text


def lone_modules(texts: dict[Path, str], importers: dict[str, set[str]]) -> list[str]:
    """Return the small modules that only one other module imports: they belong into that one."""
    return [
        f"{path.relative_to(ROOT)} ({len(text.splitlines())}), for {next(iter(users))}"
        for path, text in texts.items()
        if len(text.splitlines()) < SMALL_MODULE
        and len(users := importers[module_name(path)]) == 1
        and not found_by_its_place(path, text)
    ]


def shared_names(trees: dict[Path, ast.Module]) -> list[str]:
    """Return the public classes whose name three rooms give to different things."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                rooms[node.name].add(path.relative_to(ROOT / "settle").parts[0])
    return [f"{name}: {', '.join(sorted(where))}" for name, where in sorted(rooms.items()) if len(where) > 2]


def past_names(nodes: Nodes) -> int:
    """Variables, arguments and attributes that are called told or said."""
    stored = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    stored += [n.arg for n in nodes if isinstance(n, ast.arg)]
    stored += [n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    stored += [n.name for n in nodes if isinstance(n, ast.FunctionDef)]
    return sum(name.strip("_") in PAST for name in stored)


def is_bare_participle(path: Path) -> bool:
    """Whether a module is named by one word that does not say who does what, such as `growing` or `told`."""
    name = path.stem.strip("_")
    return "_" not in name and name not in ESTABLISHED and bool(PARTICIPLE.fullmatch(name))


def measure(folder: Path) -> dict[str, object]:
    """Return every figure of the house, by name."""
    texts = {path: path.read_text(encoding="utf-8") for path in sources(folder)}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    nodes = {path: list(ast.walk(tree)) for path, tree in trees.items()}  # walked once: it takes most of the time
    known = {module_name(path) for path in sources(ROOT / "settle")}
    edges = {
        module_name(path): {name for name, _ in own_imports(nodes[path], known) if name != module_name(path)}
        for path in texts
    }
    importers: dict[str, set[str]] = defaultdict(set)
    for name, imported in edges.items():
        for other in imported:
            importers[other].add(name)
    lines = sum(map(non_blank, texts.values()))
    return {
        "files": len(texts),
        f"files under {FEW_LINES} lines": sum(len(text.splitlines()) < FEW_LINES for text in texts.values()),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
        "non-blank lines": lines,
        "Any per 1,000 lines": round(1000 * sum(map(num_any, nodes.values())) / max(1, lines), 1),
        "mappings from str to object": sum(len(UNTYPED.findall(text)) for text in texts.values()),
        "isinstance": sum(text.count("isinstance(") for text in texts.values()),
        "asserts": sum(isinstance(node, ast.Assert) for each in nodes.values() for node in each),
        "imports of our own inside functions": sum(map(in_functions, nodes.values())),
        "identifiers told or said": sum(map(past_names, nodes.values())),
        f"modules under {SMALL_MODULE} lines with one importer": lone_modules(texts, importers),
        "names of classes in three rooms": shared_names(trees),
        "import cycles, with in-function and TYPE_CHECKING imports": cycles(edges),
        f"functions over {MOST_FUNCTION} lines": [
            w for path in texts for w in long_functions(path, texts[path], nodes[path])
        ],
        "modules named by a bare participle": [str(p.relative_to(ROOT)) for p in texts if is_bare_participle(p)],
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
