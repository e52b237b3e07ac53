"""Filling a gap in a text: the prompt that models of code were trained on for it.

llama.cpp's own /infill drops what does not fit a batch, without a word: the beginning of what comes before, the end of
what comes after, and other files altogether. So the prompt is put together here, and one that is too long is refused.
"""

from collections.abc import Sequence
from typing import Any

import aiohttp

from settle.server.errors import Refusal
from settle.server.models.model_pool import Loaded
from settle.server.requests.upstream import ask

APART = "\n\n--- snippet ---\n\n"  # between files, for models that have no token for it


async def gap_prompt(
    session: aiohttp.ClientSession,
    loaded: Loaded,
    before: str,
    after: str,
    begun: str = "",
    extra: Sequence[dict[str, str]] = (),
) -> list[int]:
    """Tokens. begun: how the filling begins; extra: {filename, text} of other files. Raises Refusal."""
    fim = loaded.facts.fim
    if not fim:
        said = "the model has no tokens for filling a gap, so it cannot take what comes after it"
        raise Refusal(400, said, "not_supported", "suffix")

    async def tokens(text: str) -> list[Any]:
        asked = {"content": text, "add_special": False, "parse_special": False}  # code may spell a special token
        return list((await ask(session, loaded, "/tokenize", asked))["tokens"]) if text else []

    start = await ask(session, loaded, "/tokenize", {"content": "", "add_special": True})
    made: list[int] = start["tokens"][:1]  # what the model wants every text to begin with, if anything
    if extra and "rep" in fim:
        made += [fim["rep"], *await tokens("project\n")]
    for file in extra:
        made += [fim["sep"], *await tokens(f"{file['filename'] or 'file'}\n")] if "sep" in fim else await tokens(APART)
        made += await tokens(file["text"])
    if extra and "sep" in fim:
        made += [fim["sep"], *await tokens("this file\n")]
    made += [fim["pre"], *await tokens(before), fim["suf"], *await tokens(after), fim["mid"]]
    return made + await tokens(begun)
