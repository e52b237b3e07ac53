"""Compiles grammars in a process of its own.

The compiler is recursive native code: a grammar that is nested too deep would end the server. Here it ends a process
that is started again, and the request fails. That process has a smaller stack than llama.cpp's threads, so they can
compile what it compiles.
"""

import asyncio
import atexit
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

SECONDS = 10.0  # for one grammar, and for the process to start
STACK_BYTES = 512 << 10  # the smallest that a thread of llama.cpp has (macOS)

_THREAD = ThreadPoolExecutor(1, "grammars")  # one after the other
_processes: list[subprocess.Popen[str]] = []


class GrammarError(Exception):
    """A grammar that does not compile, in the compiler's words."""


async def compile_grammar(grammar: str, is_gbnf: bool = False) -> str:
    """The grammar for llguidance, from llguidance's own format or llama.cpp's GBNF. Raises GrammarError."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, _ask, grammar, is_gbnf)


@atexit.register
def close() -> None:
    """End the process; the next grammar makes a new one."""
    while _processes:
        process = _processes.pop()
        process.kill()
        process.communicate()


def _ask(grammar: str, is_gbnf: bool) -> str:
    if not _processes:
        command = [sys.executable, "-m", "settle.server.requests.grammar_compiler"]
        process = subprocess.Popen(
            command,
            text=True,
            encoding="ascii",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _processes.append(process)
    process = _processes[0]
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([grammar, is_gbnf]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = ""
    finally:
        timer.cancel()
    if not answer.endswith("\n"):
        close()
        raise GrammarError("it is nested too deep, or takes too long to compile")
    lark, error = json.loads(answer)
    if error is not None:
        raise GrammarError(error)
    return str(lark)


def _compile(grammar: str, is_gbnf: bool) -> tuple[str, str | None]:
    """The grammar for llguidance, and its error."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        lark = gbnf_to_lark(grammar) if is_gbnf else grammar
        is_bad, messages = LLMatcher.validate_grammar_with_warnings(lark)
    except RecursionError:
        return "", "it is nested too deep"
    except BaseException as e:  # noqa: BLE001  a panic of Rust is no Exception
        return "", str(e)[:300] or type(e).__name__
    return lark, (messages or ["does not compile"])[0].splitlines()[0] if is_bad else None


def _serve() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_compile(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_serve).start()
