"""Asks a process of its own whether a grammar can be kept to, and whether an answer fits its schema.

The compiler is recursive native code, a schema may take gigabytes, and a pattern may take for ever: each of these would
end the server. Here it ends a process that is started again, and the request fails. That process has a smaller stack
than llama.cpp's threads and limits on memory and time, so they can compile what it compiles.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

from settle.base.line_child import LineChild
from settle.base.python_command import module_command
from settle.server.models.loaded_model import LoadedModel
from settle.wire.types import JsonObject

SECONDS = 60.0  # on a busy machine, for the process to start, to read a model's tokens, and to check; it limits itself

_THREAD = ThreadPoolExecutor(1, "grammars")  # one after the other
_CHILD = LineChild(module_command("settle.server.grammar.checker_child"))


class GrammarError(Exception):
    """A grammar that cannot be kept to, or an answer that does not fit, in the checker's words."""


async def check_grammar(grammar: str, loaded: LoadedModel, is_gbnf: bool = False) -> str:
    """Return the grammar for llguidance, from its own format or llama.cpp's GBNF. Raises GrammarError."""
    return await _ask("grammar", grammar, is_gbnf, str(loaded.key.path), loaded.key.stamp)


async def check_answer(
    grammar: str, loaded: LoadedModel, schema: JsonObject | None, text: str, has_ended: bool
) -> None:
    """Check a text against a grammar and a schema. Raises GrammarError.

    It must be what the grammar allows, or the beginning of it where the text has not ended, and fit the schema where it
    has."""
    await _ask("answer", grammar, str(loaded.key.path), loaded.key.stamp, schema, text, has_ended)


async def check_json(schema: JsonObject, text: str) -> None:
    """Check that a text is JSON of the schema. Raises GrammarError."""
    await _ask("json", schema, text)


def close() -> None:
    """End the process; the next request makes a new one."""
    _CHILD.close()


async def _ask(*request: object) -> str:
    return await asyncio.get_running_loop().run_in_executor(_THREAD, _ask_process, json.dumps(request).encode())


def _ask_process(request: bytes) -> str:
    answer = _CHILD.ask(request, SECONDS)
    if not answer.endswith(b"\n"):
        status = _CHILD.exit_code(1.0)
        close()
        if status == 1:
            raise RuntimeError("the checker of grammars does not start")
        raise GrammarError("it is nested too deep, or takes too much time or memory to compile")
    result, error = json.loads(answer)
    if error is not None:
        raise GrammarError(error)
    return str(result)
