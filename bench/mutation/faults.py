"""Small faults that can be put into a function, one at a time, and the texts that they leave.

A fault replaces one stretch of a line: an operator by its neighbour, a number by the next, a condition by its
opposite, a call by nothing. Messages, annotations, defaults, decorators and constants of modules are left alone:
nobody computes with them, no code object of the function holds them, or they are chosen rather than right. Faults keep
every line where it was, so a function of the changed text can be recognised by the line it begins at.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARED: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
COMPUTED: dict[type[ast.operator], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("/",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)),
    ast.Mod: ("%", ("*",)),
    ast.Pow: ("**", ("*",)),
    ast.MatMult: ("@", ("*",)),
}
_PAIRS = (
    ("min", "max"), ("any", "all"), ("mean", "sum"), ("ceil", "floor"), ("log", "exp"), ("argmax", "argmin"),
    ("clamp_min", "clamp_max"), ("upper", "lower"), ("startswith", "endswith"), ("add_", "sub_"), ("mul_", "div_"),
)  # fmt: skip
SWAPPED = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])} | {"append": "remove"}
GUARDS = {"strict", "timeout", "flush", "encoding"}  # keywords that guard, or that nothing is computed from
LARGE, NEXT_TO_NOTHING = 16, 1e-5
NOT_ENDED = " (does not end)"  # behind the name of a test that a fault keeps from ending
SPEAKS = {"SettleError", "emit", "print", "write", "warn", "Field", "debug", "info"}  # a fault there changes words only


@dataclass(frozen=True, order=True)
class Fault:
    """A change of some bytes of a file.

    path: relative to the tree, with forward slashes. function: its qualified name. start, end: the bytes that `new`
    replaces. statement: the text of its line; nth: among equal faults of the function.
    """

    path: str
    function: str
    line: int
    start: int
    end: int
    old: str
    new: str
    statement: str
    nth: int = 0

    @property
    def key(self) -> str:
        """What it is called across runs, as long as its line is the same."""
        return f"{self.path} {self.function} | {self.statement} | {self.old} -> {self.new} | {self.nth}"

    def put_into(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


def faults_of(root: Path, path: str) -> list[Fault]:
    """All faults that can be put into the functions of a file; a few of them are no Python (`compiles`)."""
    source = (root / path).read_bytes()
    tree = ast.parse(source)
    found: list[Fault] = []
    for name, function in _functions(tree):
        places = _Places(source, path, name)
        for statement in function.body:
            places.visit(statement)
        found += places.found
    return _numbered(found)


def _functions(tree: ast.AST, before: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the outermost functions and methods by qualified name; what lies within one belongs to it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield before + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{before}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from _functions(node, before)


def compiles(root: Path, fault: Fault) -> bool:
    """Whether the file is still Python with the fault in it."""
    try:
        ast.parse(fault.put_into((root / fault.path).read_bytes()))
    except SyntaxError:
        return False
    return True


def _numbered(faults: list[Fault]) -> list[Fault]:
    seen: dict[str, int] = {}
    numbered = []
    for fault in sorted(set(faults), key=lambda f: (f.start, f.end, f.new)):
        nth = seen[fault.key] = seen.get(fault.key, -1) + 1
        numbered.append(Fault(**(fault.__dict__ | {"nth": nth})))
    return numbered


class _Places(ast.NodeVisitor):
    """Where faults can be put in a statement, and which."""

    def __init__(self, source: bytes, path: str, function: str) -> None:
        self.source, self.path, self.function = source, path, function
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Fault] = []

    def _at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def _put(self, start: int, end: int, new: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        text = self.source[self.starts[line - 1] : self.starts[line]].decode().strip()
        old = self.source[start:end].decode()
        if old.count("\n") == new.count("\n"):
            self.found.append(Fault(self.path, self.function, line, start, end, old, new, text))

    def _between(self, left: ast.expr, right: ast.expr, old: str, news: tuple[str, ...]) -> None:
        """Replace an operator between its operands, perhaps after a closing bracket."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self.source[start:end]
        at = gap.find(old.encode())
        if at >= 0 and b"#" not in gap:
            for new in news:
                self._put(start + at, start + at + len(old.encode()), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            self._between(left, right, *COMPARED[type(operator)])
            left = right
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        words = any(isinstance(side, ast.JoinedStr | ast.Constant) and not _is_number(side)
                    for side in (node.left, node.right))  # fmt: skip
        if type(node.op) in COMPUTED and not words:
            self._between(node.left, node.right, *COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        old, news = COMPUTED.get(type(node.op), ("", ()))
        self._between(node.target, node.value, old + "=", tuple(new + "=" for new in news))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, f" {old} ", (f" {new} ",))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, operand = self._span(node)[0], self._span(node.operand)[0]
        if isinstance(node.op, ast.Not | ast.USub) and b"(" not in self.source[start:operand]:
            self._put(start, operand, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._put(*self._span(node), str(not node.value))
        elif _is_number(node):
            number = node.value
            news = (
                [number + 1 if abs(number) < LARGE else number * 2] if isinstance(number, int) else [number * 2 or 1.0]
            )
            if 0 < abs(number) <= NEXT_TO_NOTHING:
                news = []  # it guards a division
            if number == 1:
                news.append(number - 1)
            for new in news:
                self._put(*self._span(node), repr(new))

    def _condition(self, node: ast.If | ast.IfExp | ast.While) -> None:
        start, end = self._span(node.test)
        text = self.source[start:end].decode()
        self._put(start, end, f"(not ({text}))")
        self.generic_visit(node)

    visit_If = visit_IfExp = _condition

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._put(*self._span(test), "True" + "\n" * self.source[slice(*self._span(test))].count(b"\n"))
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Leave out a statement that has only an effect."""
        if isinstance(node.value, ast.Constant) or _speaks(node.value):
            return
        start, end = self._span(node)
        if isinstance(node.value, ast.Call):
            lines = self.source[start:end].count(b"\n")
            self._put(start, end, "(" + "\n" * lines + ")" if lines else "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if _speaks(node):
            return
        name = node.func
        last = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""
        if last in SWAPPED and not (isinstance(name, ast.Name) and last in ("sum", "log", "exp")):
            end = self._span(name)[1]
            self._put(end - len(last), end, SWAPPED[last])
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._put(*self._span(node), "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._put(*self._span(node), "break")

    def visit_Raise(self, node: ast.Raise) -> None:
        """Skip what an error says, which is not a computation."""

    visit_JoinedStr = visit_Assert = visit_Global = visit_Raise

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in GUARDS:
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        self.visit(node.slice)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _speaks(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func
    last = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""
    return last in SPEAKS
