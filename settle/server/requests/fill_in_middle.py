"""Fill-in-the-middle: the prompt that code models were trained on for filling a gap in a text.

llama.cpp's own /infill silently drops what does not fit a batch: the beginning of the text before the gap, the end of
the text after it, and other files altogether. So the prompt is made here, and one that is too long is an error.
"""

from collections.abc import Sequence

from settle.server.errors import ApiError
from settle.server.models.loaded_model import LoadedModel
from settle.server.requests.engine import tokenize

FILE_SEPARATOR = "\n\n--- snippet ---\n\n"  # for models that have no token for it


async def infill_prompt(
    loaded: LoadedModel, before: str, after: str, start: str = "", extra: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """Tokens. before, after: the texts around the gap. start: how the filling begins.
    extra: names and texts of other files of the project. Raises ApiError."""
    fim = loaded.facts.fim
    if not fim:
        message = "the model has no fill-in-the-middle tokens, so it cannot use a suffix"
        raise ApiError(400, message, "not_supported", "suffix")

    async def tokens(text: str) -> list[int]:  # code may spell a special token
        return await tokenize(loaded, text, add_special=False, parse_special=False) if text else []

    prompt = (await tokenize(loaded, "", add_special=True))[:1]  # the token that texts begin with, if there is one
    if extra and "rep" in fim:
        prompt += [fim["rep"], *await tokens("project\n")]
    for name, text in extra:
        prompt += [fim["sep"], *await tokens(f"{name or 'file'}\n")] if "sep" in fim else await tokens(FILE_SEPARATOR)
        prompt += await tokens(text)
    if extra and "sep" in fim:
        prompt += [fim["sep"], *await tokens("this file\n")]
    prompt += [fim["pre"], *await tokens(before), fim["suf"], *await tokens(after), fim["mid"]]
    return prompt + await tokens(start)
