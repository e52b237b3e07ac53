"""Answers that are held to a grammar, checked when they are complete: whatever the engine did, the client is told."""

from collections import defaultdict

from settle.server.errors import ApiError
from settle.server.grammar.checker import GrammarError, check_answer
from settle.server.grammar.grammars import answer_schema
from settle.server.models.loaded_model import LoadedModel
from settle.server.wire_types import JsonObject

TOKEN = "<["  # a special token in a grammar: one ends an answer; others are not in the text that llama.cpp shows


class AnswerCheck:
    """The texts of one request, by the index of their choice. grammar: as the engine has it, None leaves them free.
    schema: that the grammar was made from, if any. can_be_cut: whether a stop string of the request may end a text."""

    def __init__(self, loaded: LoadedModel, grammar: object, schema: JsonObject | None, can_be_cut: bool) -> None:
        self._loaded, self._grammar, self._can_be_cut = loaded, grammar, can_be_cut
        self._schema = None if schema is None else answer_schema(schema, "response_format")
        self._texts: defaultdict[int, str] = defaultdict(str)

    def add(self, text: str | None, index: int = 0) -> None:
        if self._grammar:
            self._texts[index] += text or ""

    async def finish(self, has_ended: bool, index: int = 0) -> None:
        """has_ended: whether the model ended the text, and no limit did. Raises ApiError for one that does not fit."""
        text, is_whole = self._texts.pop(index, ""), has_ended and not self._can_be_cut
        if not isinstance(self._grammar, str) or self._grammar.count(TOKEN) > 1:
            return
        try:
            await check_answer(self._grammar, self._loaded, self._schema, text, is_whole)
        except GrammarError as e:
            message = f"the engine did not keep to the schema or grammar: {str(e)[:300]}"
            raise ApiError(502, message, "engine_error") from None
