"""Typed questions about a state, answered by a decision model."""

import asyncio
import json
from collections.abc import Sequence

from settle.base.errors import DataError
from settle.data.decisions.questions import DecisionAnswer, Question
from settle.infer.child_process import Json
from settle.infer.decider import PATH, LlamaForm
from settle.server.models.model_entry import ModelEntry, facts, make_file
from settle.server.models.model_pool import ModelPool
from settle.server.requests.engine import ask, require_possible, tokenize
from settle.wire.errors import PROMPT, ApiError, invalid, unsupported
from settle.wire.types import JsonObject


async def embed_texts(
    pool: ModelPool, entry: ModelEntry, inputs: Sequence[str | list[int]]
) -> tuple[list[list[float]], int]:
    """Return vectors of length 1, and the number of tokens read. Raises ApiError.

    inputs: texts or lists of token ids."""
    entry.require_no_documents("it makes no vectors")
    if any(not text for text in inputs):
        raise invalid("input", "a text is empty")
    if entry.adapter:
        raise unsupported("model", f"{entry.id} is an adapter, and embeddings ignore adapters; use {entry.base}")
    async with pool.use(entry, "embed") as loaded:
        answer = await ask(loaded, "/v1/embeddings", {"input": inputs, "model": entry.id})
    return [item["embedding"] for item in answer["data"]], answer["usage"]["prompt_tokens"]


def require_dimensions(wanted: int | None, vectors: list[list[float]], entry: ModelEntry) -> None:
    """Refuse a length of vectors that the model does not make. Raises ApiError."""
    if wanted is not None and vectors and wanted != len(vectors[0]):
        raise unsupported("dimensions", f"{entry.id} makes vectors of {len(vectors[0])} numbers")


async def truncate_texts(pool: ModelPool, entry: ModelEntry, texts: Sequence[str]) -> tuple[list[str | list[int]], int]:
    """Return texts, the long ones as their first tokens, and how many those are. Raises ApiError."""
    inputs: list[str | list[int]] = []
    async with pool.use(entry, "embed") as loaded:
        for text in texts:
            tokens = await tokenize(loaded, text, add_special=True, parse_special=True)
            inputs.append(text if len(tokens) <= loaded.context else tokens[: loaded.context])
    return inputs, sum(isinstance(text, list) for text in inputs)


async def rank_documents(
    pool: ModelPool, entry: ModelEntry, query: str, documents: Sequence[str]
) -> tuple[list[Json], int]:
    """Return the rank of each document, the best first, and the number of tokens read. Raises ApiError."""
    async with pool.use(entry, "rerank") as loaded:
        answer = await ask(loaded, "/v1/rerank", {"query": query, "documents": documents})
    ranks = [{"index": r["index"], "relevance_score": r["relevance_score"]} for r in answer["results"]]
    return sorted(ranks, key=lambda rank: -rank["relevance_score"]), answer["usage"]["prompt_tokens"]


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


def question_of(value: JsonObject, param: str) -> Question:
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
