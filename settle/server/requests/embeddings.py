"""Texts as vectors, and documents ordered by how well they answer a query."""

from collections.abc import Sequence

from settle.infer.child_process import Json
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_pool import ModelPool
from settle.server.requests.engine import ask, tokenize
from settle.wire.errors import invalid, unsupported


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
