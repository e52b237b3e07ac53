"""Tests run on a tree with one fault in it, each time in a fork of one process that has loaded and collected all.

The fault goes into the file, where child processes read it, and into the functions of this process that were made
from it. So a trial costs what its tests cost, without the imports.
"""

import ast
import collections
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutation.faults import NOT_ENDED, Fault

CPU_SECONDS, WALL_SECONDS = 60, 900  # of one trial at most: more is a program that does not end
LEAST_CPU_SECONDS = 10
# pytest would warn of modules that are loaded before it can rewrite their assertions.
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")
ALONE_SECONDS = 300  # of a single test in a process of its own, at most


@dataclass(frozen=True)
class Outcome:
    """by: the test that failed, or nothing. tests: how many ran."""

    by: str
    tests: int


def run_trials(root: Path, arguments: Sequence[str], paths: Iterable[str], work: Callable[["Trials"], None]) -> int:
    """Load the files in which faults will be, collect the tests that pytest's `arguments` name and do `work` with them.

    Args:
        root: a copy of the tree, the current folder, where faults may be put into files.
        paths: relative to it.

    Returns:
        pytest's exit code.
    """
    for path in paths:
        importlib.import_module(module_of(path))
    return int(pytest.main([*OPTIONS, "--no-header", *arguments], plugins=[_Loop(root, work)]))


class _Loop:
    def __init__(self, root: Path, work: Callable[["Trials"], None]) -> None:
        self.root, self.work = root, work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        trials = Trials(self.root, session)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page
        self.work(trials)
        return True


class Trials:
    """What a fault changes, told by tests. A test that fails without a fault is named once and not asked again."""

    def __init__(self, root: Path, session: pytest.Session) -> None:
        self.root, self.session = root, session
        self.items = {item.nodeid: item for item in session.items}
        self.sound: dict[str, bool] = {}
        self.seconds, self.limit, self.ran = float(CPU_SECONDS), CPU_SECONDS, 0
        self.functions = functions_of(root)

    def outcome(self, fault: Fault, tests: Sequence[str], seconds: float = CPU_SECONDS) -> Outcome:
        """Run tests in turn until one fails that does not fail without the fault.

        seconds: of CPU, after which no further test begins.
        """
        self.seconds, self.limit = seconds, min(CPU_SECONDS, LEAST_CPU_SECONDS + round(2 * seconds))
        path = self.root / fault.path
        source, functions = path.read_bytes(), self.functions.get((str(path), fault.function), [])
        left = [test for test in tests if test in self.items and self.sound.get(test, True)]
        ran = 0
        while left:
            path.write_bytes(fault.put_into(source))
            try:
                failed = self._run(left, lambda: put_into_memory(fault, source, functions))
            finally:
                path.write_bytes(source)
            if not failed:
                return Outcome("", ran + self.ran)
            name = failed.removesuffix(NOT_ENDED)
            if name not in self.sound:
                self.sound[name] = not self._run([name], lambda: None)
            at = left.index(name)
            ran += at + 1
            if self.sound[name]:
                return Outcome(failed, ran)
            left = left[at + 1 :]
        return Outcome("", ran)

    def _run(self, tests: Sequence[str], change: Callable[[], None]) -> str:
        """Return the first of the tests that fails in a fork of this process after `change`, or nothing."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (self.limit, self.limit))
            try:
                change()
                self._in_child(tests, write)
            except BaseException as error:  # noqa: BLE001 a child of a fork must end here, whatever it was
                os.write(write, f"\nbroken\n{error!r}".encode())
            os._exit(9)
        os.close(write)
        said = _until_it_ends(pid, read)
        lines = said.split("\n")
        self.ran = len(lines) - 2  # an empty line first, the outcome last
        if "broken" in lines:
            raise RuntimeError(said)
        if lines[-1] == "passed":
            return ""
        if lines[-1] == "failed":
            return lines[-2]
        return lines[-1] + NOT_ENDED if said else tests[0] + NOT_ENDED

    def _in_child(self, tests: Sequence[str], write: int) -> None:
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            os.write(write, f"\n{item.nodeid}".encode())
            self.session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.session.testsfailed:
                os.write(write, b"\nfailed")
                os._exit(1)
            if _cpu_seconds() > self.seconds:
                break
        os.write(write, b"\npassed")
        os._exit(0)


def _cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _until_it_ends(pid: int, read: int) -> str:
    """Return what a child wrote; it and its own children are ended after WALL_SECONDS."""
    os.set_blocking(read, False)
    until, said = time.monotonic() + WALL_SECONDS, b""
    ended = False
    while not ended and time.monotonic() < until:
        ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        with contextlib.suppress(BlockingIOError):
            said += os.read(read, 1 << 16)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
    with contextlib.suppress(BlockingIOError):
        said += os.read(read, 1 << 16)
    os.close(read)
    return said.decode()


def functions_of(root: Path) -> dict[tuple[str, str], list[types.FunctionType]]:
    """Every loaded function of settle by its file and the qualified name of the outermost function that holds it."""
    found: dict[tuple[str, str], list[types.FunctionType]] = collections.defaultdict(list)
    ours = str(root / "settle") + os.sep
    for function in gc.get_objects():
        if type(function) is types.FunctionType and function.__code__.co_filename.startswith(ours):
            outermost = function.__code__.co_qualname.split(".<locals>")[0]
            found[function.__code__.co_filename, outermost].append(function)
    return found


def put_into_memory(fault: Fault, source: bytes, functions: Sequence[types.FunctionType]) -> None:
    """Give every function that was made from the faulty one of `source` its new code.

    Raises:
        LookupError: no such function is loaded.
    """
    if not functions:
        raise LookupError(f"{fault.function} of {fault.path} is not loaded")
    path = functions[0].__code__.co_filename
    new = {(code.co_qualname, code.co_firstlineno): code for code in _codes(fault.put_into(source), path)}
    for function in functions:
        function.__code__ = new[function.__code__.co_qualname, function.__code__.co_firstlineno]


def _codes(source: bytes, path: str) -> Iterator[types.CodeType]:
    waiting = [compile(ast.parse(source), path, "exec")]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def module_of(path: str) -> str:
    """Return the name of the module in a file below the root."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def run_alone(root: Path, fault: Fault, test: str) -> subprocess.CompletedProcess[str]:
    """Run one test with the fault in memory, in a process of its own, which holds no lock that another thread took.

    Its exit code is pytest's: `TESTS_FAILED` where the test noticed. What was printed is kept.
    """
    paths = os.pathsep.join([str(root), str(root / "bench")])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": paths}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with tempfile.TemporaryDirectory() as folder:  # not among those of the suite, which each pytest tidies at its end
        options = [f"--basetemp={folder}/made", test]
        command = [sys.executable, "-m", "mutation.trials", str(root), json.dumps(dataclasses.asdict(fault)), *options]
        return subprocess.run(command, cwd=root, env=env, timeout=ALONE_SECONDS, **output)


def main() -> None:
    root, fault, options = Path(sys.argv[1]), Fault(**json.loads(sys.argv[2])), sys.argv[3:]
    importlib.import_module(module_of(fault.path))
    functions = functions_of(root).get((str(root / fault.path), fault.function), [])
    put_into_memory(fault, (root / fault.path).read_bytes(), functions)
    sys.exit(pytest.main([*OPTIONS, "-x", f"--rootdir={root}", *options]))


if __name__ == "__main__":
    main()
