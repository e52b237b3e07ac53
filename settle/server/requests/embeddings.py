"""Texts as vectors, and documents in the order in which they answer a query."""

from collections.abc import Sequence
from typing import Any

from settle.server.errors import invalid, require_no_documents, unsupported
from settle.server.gateway import Call
from settle.server.models.model_catalogue import Entry
from settle.server.requests.upstream import ask


async def embedded(call: Call, entry: Entry, inputs: list[Any]) -> tuple[list[list[float]], int]:
    """Vectors of length 1, and the tokens that were read. inputs: texts or lists of token ids. Raises Refusal."""
    require_no_documents(entry, "it makes no vectors")
    if any(not text for text in inputs):
        raise invalid("input", "a text is empty")
    if entry.adapter:
        raise unsupported(
            "model", f"{entry.id} is an adapter, and those do not take part in embeddings: {entry.base} does"
        )
    async with call.gateway.keeper.use(entry, "embed") as loaded:
        answer = await ask(call.gateway.keeper.session, loaded, "/v1/embeddings", {"input": inputs, "model": entry.id})
    tokens = answer["usage"]["prompt_tokens"]
    call.record.prompt_tokens = tokens
    return [item["embedding"] for item in answer["data"]], tokens


async def shortened(call: Call, entry: Entry, texts: Sequence[str]) -> tuple[list[Any], int]:
    """Texts, those that are too long as their first tokens, and how many those are. Raises Refusal."""
    kept: list[Any] = []
    session = call.gateway.keeper.session
    async with call.gateway.keeper.use(entry, "embed") as loaded:
        for text in texts:
            body = {"content": text, "add_special": True, "parse_special": True}
            tokens = (await ask(session, loaded, "/tokenize", body))["tokens"]
            kept.append(text if len(tokens) <= loaded.context else tokens[: loaded.context])
    return kept, sum(isinstance(text, list) for text in kept)


async def reranked(call: Call, entry: Entry, query: str, documents: list[str]) -> tuple[list[dict[str, Any]], int]:
    """{index, relevance_score} of each document, the best first, and the tokens that were read. Raises Refusal."""
    async with call.gateway.keeper.use(entry, "rerank") as loaded:
        asked = {"query": query, "documents": documents}
        answer = await ask(call.gateway.keeper.session, loaded, "/v1/rerank", asked)
    tokens = answer["usage"]["prompt_tokens"]
    call.record.prompt_tokens = tokens
    results = [{"index": r["index"], "relevance_score": r["relevance_score"]} for r in answer["results"]]
    return sorted(results, key=lambda result: -result["relevance_score"]), tokens
