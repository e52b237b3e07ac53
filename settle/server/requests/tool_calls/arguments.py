"""Arguments of a call that was found in a text: whether they fit their schema."""

from settle.server.grammar.checker import GrammarError, check_json
from settle.server.wire_types import JsonObject


async def fits(schema: JsonObject, arguments: str) -> bool:
    """arguments: as JSON."""
    try:
        await check_json(schema, arguments)
    except GrammarError:
        return False
    return True
