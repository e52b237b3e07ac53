"""What there is to ask for, as an OpenAPI 3.1 document: made from the routes themselves, so it cannot lag behind."""

import inspect
import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from settle.base.version import __version__
from settle.server.apis import Shape
from settle.server.errors import Refusal
from settle.server.gateway import Endpoint

REFUSED = (400, 401, 403, 404, 405, 408, 413, 429, 500, 502, 503)
PLACE = re.compile(r"\{(\w+)(?::(\w+))?\}")  # of a path: a name, and how starlette reads it
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
Refs = dict[type[BaseModel], dict[str, Any]]


def document(shapes: Sequence[Shape]) -> dict[str, Any]:
    """The document. Where two shapes claim a path the first one has it, as with the server's routes."""
    routes = [(shape, *route) for shape in shapes for route in shape.endpoints()]
    refs, schemas = _bodies([endpoint for _, _, _, endpoint in routes])
    paths: dict[str, dict[str, Any]] = {}
    for shape, method, path, endpoint in routes:
        operations = paths.setdefault(PLACE.sub(r"{\1}", path), {})
        operations.setdefault(method.lower(), _operation(shape, method, path, endpoint, refs))
    return {
        "openapi": "3.1.0",
        "info": {"title": "settle", "version": __version__},
        "paths": paths,
        "security": [{name: []} for name in SCHEMES],
        "components": {
            "schemas": schemas | {_error_name(shape): _error_schema(shape) for shape in shapes},
            "securitySchemes": SCHEMES,
        },
    }


def _bodies(endpoints: Sequence[Endpoint]) -> tuple[Refs, dict[str, Any]]:
    """Each body model's reference, and the schemas that are referred to."""
    models = dict.fromkeys(endpoint.takes for endpoint in endpoints if endpoint.takes)
    mode: Literal["validation"] = "validation"
    refs, defined = models_json_schema([(model, mode) for model in models], ref_template="#/components/schemas/{model}")
    return {model: ref for (model, _), ref in refs.items()}, defined.get("$defs", {})


def _operation(shape: Shape, method: str, path: str, endpoint: Endpoint, refs: Refs) -> dict[str, Any]:
    told = inspect.getdoc(endpoint.handler) or endpoint.name.partition(".")[2].replace("_", " ")
    operation: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", path)]),
        "summary": told.splitlines()[0],
        "tags": [endpoint.name.partition(".")[0]],
        "responses": {"200": {"description": "done", "content": {"application/json": {}}}} | dict(_refusals(shape)),
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


def _refusals(shape: Shape) -> Iterator[tuple[str, dict[str, Any]]]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_error_name(shape)}"}}}
    for status in REFUSED:
        yield str(status), {"description": HTTPStatus(status).phrase, "content": content}


def _error_name(shape: Shape) -> str:
    return f"{type(shape).__name__}Error"


def _error_schema(shape: Shape) -> dict[str, Any]:
    """Read off two errors of a shape, one that tells everything and one that tells as little as can be."""
    return _common(shape.error(Refusal(400, "said", "code", "param")), shape.error(Refusal(400, "said")))


def _common(one: Any, two: Any) -> dict[str, Any]:
    if isinstance(one, dict) and isinstance(two, dict):
        inner = {name: _common(one[name], two.get(name)) for name in one}
        return {"type": "object", "properties": inner, "required": sorted(one.keys() & two.keys())}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    found = sorted({kinds[type(value)] for value in (one, two) if type(value) in kinds})
    return {"type": found if len(found) > 1 else found[0]} if found else {}
