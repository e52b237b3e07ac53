"""The OpenAPI 3.1 document, made from the routes themselves, so it is always up to date."""

import inspect
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from settle.base.version import __version__
from settle.server.apis import Api
from settle.server.gateway import Endpoint
from settle.wire.errors import ApiError
from settle.wire.types import JsonObject

ERROR_STATUSES = (400, 401, 403, 404, 405, 408, 413, 429, 500, 502, 503)
PLACE = re.compile(r"\{(\w+)(?::(\w+))?\}")  # in a path: a name, and how starlette reads it
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
JSON_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
}
Refs = dict[type[BaseModel], JsonObject]


def openapi_document(apis: Sequence[Api]) -> JsonObject:
    """Where two APIs have the same path, the first one's counts, as with the server's routes."""
    routes = [(api, *route) for api in apis for route in api.endpoints()]
    refs, schemas = _bodies([endpoint for _, _, _, endpoint in routes])
    paths: dict[str, JsonObject] = {}
    for api, method, path, endpoint in routes:
        operations = paths.setdefault(PLACE.sub(r"{\1}", path), {})
        operations.setdefault(method.lower(), _operation(api, method, path, endpoint, refs))
    return {
        "openapi": "3.1.0",
        "info": {"title": "settle", "version": __version__},
        "paths": paths,
        "security": [{name: []} for name in SCHEMES],
        "components": {
            "schemas": schemas | {_error_name(api): _error_schema(api) for api in apis},
            "securitySchemes": SCHEMES,
        },
    }


def _bodies(endpoints: Sequence[Endpoint]) -> tuple[Refs, JsonObject]:
    """Each body model's reference, and the schemas that are referred to."""
    models = dict.fromkeys(endpoint.takes for endpoint in endpoints if endpoint.takes)
    mode: Literal["validation"] = "validation"
    refs, defined = models_json_schema([(model, mode) for model in models], ref_template="#/components/schemas/{model}")
    by_model: Refs = {model: refs[model, mode] for model in models}
    return by_model, defined.get("$defs", {})


def _operation(api: Api, method: str, path: str, endpoint: Endpoint, refs: Refs) -> JsonObject:
    ref = {"$ref": f"#/components/schemas/{_error_name(api)}"}
    content: JsonObject = {"application/json": {"schema": ref}}
    errors = {str(s): {"description": HTTPStatus(s).phrase, "content": content} for s in ERROR_STATUSES}
    summary = inspect.getdoc(endpoint.handler) or endpoint.name.partition(".")[2].replace("_", " ")
    operation: JsonObject = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", path)]),
        "summary": summary.splitlines()[0],
        "tags": [endpoint.name.partition(".")[0]],
        "responses": {"200": {"description": "done", "content": {"application/json": {}}}} | errors,
    }
    if PLACE.search(path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name, _ in PLACE.findall(path)
        ]
    if endpoint.takes:
        content = {"application/json": {"schema": refs[endpoint.takes]}}
        is_required = any(field.is_required() for field in endpoint.takes.model_fields.values())
        operation["requestBody"] = {"required": is_required, "content": content}
    return operation


def _error_name(api: Api) -> str:
    return f"{type(api).__name__}Error"


def _error_schema(api: Api) -> JsonObject:
    """Derive a schema from two errors of an API: one with all fields, and one with as few as there can be."""
    return _common(api.error(ApiError(400, "said", "code", "param")), api.error(ApiError(400, "said")))


def _common(one: object, two: object) -> JsonObject:
    if isinstance(one, dict) and isinstance(two, dict):
        inner = {name: _common(one[name], two.get(name)) for name in one}
        return {"type": "object", "properties": inner, "required": sorted(one.keys() & two.keys())}
    types = sorted({JSON_TYPES[type(value)] for value in (one, two) if type(value) in JSON_TYPES})
    return {"type": types if len(types) > 1 else types[0]} if types else {}
