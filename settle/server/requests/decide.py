"""Typed questions about a state, answered by a decision model."""

import asyncio
import json
from collections.abc import Mapping, Sequence

from settle.base.errors import DataError
from settle.data.decisions.questions import DecisionAnswer, Question
from settle.infer.decisions.decider import PATH, LlamaForm
from settle.server.models.model_entry import ModelEntry, make_file
from settle.server.models.model_facts import facts
from settle.server.models.model_pool import ModelPool
from settle.server.requests.engine import ask, require_possible
from settle.wire.errors import PROMPT, ApiError, unsupported
from settle.wire.types import JsonObject

MOST_QUESTIONS = 400  # of one request, as of OpenAI's


async def decide(
    pool: ModelPool, entry: ModelEntry, state: str, questions: Sequence[Question]
) -> tuple[list[DecisionAnswer], int]:
    """Answers in the order of the questions, and the number of tokens read. Raises ApiError."""
    entry.require_no_documents("it makes no decisions")
    if not state.strip():
        raise ApiError(400, "the text that is decided about is empty", "invalid_value", PROMPT)
    await asyncio.to_thread(make_file, entry)
    known = facts(entry.path)
    if known.decision is None:
        message = f"{entry.id} is no decision model; `settle tune MODEL ROWS --objective decision` makes one"
        raise ApiError(400, message, "wrong_model", "model")
    if entry.adapter:
        raise unsupported("model", f"{entry.id} is an adapter, and decisions ignore adapters; use {entry.base}")
    async with pool.use(entry) as loaded:
        require_possible([state], loaded)
        try:
            form = LlamaForm.of(known.decision, known.controls)
            reply = await ask(loaded, PATH, form.request(state, questions))
            return form.answers(reply, questions), int(reply["usage"]["input_tokens"])
        except DataError as e:
            raise ApiError(400, str(e), "invalid_value", "questions") from None


def text_of(value: object) -> str:
    """Text as it is, and other JSON as JSON text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def question_of(value: Mapping[str, object], param: str) -> Question:
    """Return a question in the form of `/v1/systemone`; instructions and descriptions may be JSON. Raises ApiError."""
    question: JsonObject = {**value}
    if isinstance(question.get("instructions"), dict | list):
        question["instructions"] = text_of(question["instructions"])
    criteria = question.get("criteria")
    if isinstance(criteria, dict):
        question["criteria"] = {key: text and text_of(text) for key, text in criteria.items()}
    elif isinstance(criteria, list) and question.get("type") == "score":
        question["criteria"] = [text_of(text) for text in criteria]
    try:
        return Question.from_json(question, param)
    except DataError as e:
        raise ApiError(400, str(e), "invalid_value", param) from None
