"""The endpoints of Ollama's API that change the store."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from pydantic import Field
from starlette.responses import Response

from settle.server.apis.ollama.answer import streamed_lines
from settle.server.gateway import Call
from settle.server.http_responses import json_response
from settle.server.models.store_changes import find_offer
from settle.wire.errors import ApiError, invalid, unsupported
from settle.wire.fields import Body, Name
from settle.wire.types import JsonObject

RequiredName = Annotated[Name, Field(min_length=1)]  # of a change: never the only model that there happens to be


class OneModel(Body):
    """A body about one model, by Ollama's name for the field or its earlier one."""

    model: Name = ""
    name: Name = ""

    @property
    def wanted(self) -> str:
        """Raises ApiError when the two fields name two models."""
        if self.model and self.name and self.model != self.name:
            raise invalid("name", "is another model than the one in the field model")
        return self.model or self.name


class PullBody(OneModel):
    """What /api/pull takes."""

    stream: bool | None = None
    insecure: Literal[False] | None = None


class CopyBody(Body):
    """What /api/copy takes."""

    source: RequiredName
    destination: RequiredName


class DeleteBody(OneModel):
    """What /api/delete takes."""


class CreateBody(Body):
    """What /api/create takes: a model that is here, and an adapter over it that is here.

    What Ollama adds to a model (template, system, parameters, messages, license) belongs into requests, and files come
    by `settle pull`.
    """

    model: RequiredName
    source: RequiredName = Field(alias="from")
    adapters: Annotated[dict[Name, Literal[""]], Field(max_length=1)] | None = None
    stream: bool | None = None


async def pull(call: Call, body: PullBody) -> Response:
    name = body.wanted
    entries = call.backend.catalogue.entries()
    if any(name.removesuffix(":latest") in (entry.id, *entry.aliases) for entry in entries):
        return await _respond(call, body.stream, _status_lines(f"{name} is here", "success"))
    call.gateway.store.require_open()
    offer = await asyncio.to_thread(find_offer, name, call.gateway.store.pull_from)
    return await _respond(call, body.stream, call.gateway.store.pull(offer))


async def create(call: Call, body: CreateBody) -> Response:
    entry = call.find(body.source)
    for name in body.adapters or ():
        adapter = call.find(name if ":" in name else f"{entry.id}:{name}")
        if not adapter.adapter or adapter.path != entry.path:
            raise unsupported("adapters", f"{adapter.id} is not an adapter over {entry.id}")
        entry = adapter
    await call.gateway.store.copy(entry, body.model)
    return await _respond(call, body.stream, _status_lines(f"using {entry.id}", "success"))


async def copy(call: Call, body: CopyBody) -> Response:
    await call.gateway.store.copy(call.find(body.source), body.destination)
    return Response(status_code=200)


async def delete(call: Call, body: DeleteBody) -> Response:
    if not body.wanted:
        raise ApiError(400, "model is missing", "missing_required_parameter", "model")
    await call.gateway.store.delete(call.find(body.wanted))
    return Response(status_code=200)


async def push(call: Call) -> Response:
    raise ApiError(501, "this server pushes no models; `settle export` writes a model to a file", "not_supported")


async def blobs(call: Call) -> Response:
    message = "this server takes no files over the network; run `settle pull PATH` on its machine"
    raise ApiError(403, message, "not_allowed")


async def _respond(call: Call, stream: bool | None, lines: AsyncGenerator[JsonObject]) -> Response:
    """Return the lines of a change, or the last one."""
    if stream is False:
        return json_response([line async for line in lines][-1])
    return await streamed_lines(call, lines)


async def _status_lines(*statuses: str) -> AsyncGenerator[JsonObject]:
    for status in statuses:
        yield {"status": status}
