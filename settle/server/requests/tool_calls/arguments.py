"""Arguments of a call that was found in a text: whether they fit their schema, and whether they came before."""

import json

from settle.server.grammar.checker import GrammarError, check_json
from settle.server.wire_types import JsonObject


async def fits(schema: JsonObject, arguments: str) -> bool:
    """arguments: as JSON."""
    try:
        await check_json(schema, arguments)
    except GrammarError:
        return False
    return True


def repeats(made: set[tuple[str, str]], name: str, arguments: object) -> bool:
    """Whether an equal call was made before; it is added to those that were."""
    call = name, json.dumps(arguments, sort_keys=True)
    is_made = call in made
    made.add(call)
    return is_made
