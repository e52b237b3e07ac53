"""Every API of the registry keeps the contract: documented routes, errors of one form, strict bodies, a key."""

import json
import re

import jsonschema
import pytest
from pydantic import ValidationError

from settle.server.apis import Api
from settle.server.app import all_apis
from settle.server.guard import OPEN_PATHS
from settle.wire.errors import ApiError

APIS = {name: kind() for name, kind in Api.parts().items()}
ROUTES = [(name, *route) for name, api in APIS.items() for route in api.endpoints()]
BODIES = sorted({(name, endpoint.takes) for name, _, _, endpoint in ROUTES if endpoint.takes}, key=str)


def owner(path: str) -> Api:
    return next(api for api in all_apis() if api.owns(path))


def form(value):
    """The keys of an error's body, at every level."""
    return {key: form(inner) for key, inner in value.items()} if isinstance(value, dict) else None


@pytest.fixture(scope="module")
def document(live):
    reply = live.ask("/openapi.json")
    assert reply.status == 200 and live.ask("/openapi.json", key="").status == 401
    return reply.json


def test_one_api_answers_for_all_other_paths():
    assert [api.is_fallback for api in all_apis()].count(True) == 1 and all_apis()[-1].is_fallback
    assert owner("/nowhere/at/all").is_fallback


@pytest.mark.parametrize("name", APIS)
def test_errors_have_one_form(name):
    api = APIS[name]
    full = ApiError(429, "the message", "a_code", "a_param", {"n_ctx": 1}, retry_seconds=3)
    body = json.loads(json.dumps(api.error(full)))
    assert "the message" in json.dumps(body) and full.headers == {"Retry-After": "3"}
    for status in (400, 401, 403, 404, 413, 429, 500, 502, 503):
        assert form(api.error(ApiError(status, "another"))) == form(api.error(ApiError(400, "another")))


def test_it_is_openapi_of_every_route_and_no_other(document):
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    operations = {(method, path): o for path, found in document["paths"].items() for method, o in found.items()}
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    assert {*operations} == {(method.lower(), re.sub(r":\w+}", "}", path)) for _, method, path, _ in ROUTES}
    pytest.importorskip("schemathesis", reason="schemathesis is not installed").openapi.from_dict(document).validate()


@pytest.mark.parametrize(("name", "body"), BODIES, ids=[f"{name} {body.__name__}" for name, body in BODIES])
def test_unknown_fields_are_rejected(name, body):
    with pytest.raises(ValidationError) as error:
        body.model_validate({"frobnicate": 1})
    assert ("extra_forbidden", ("frobnicate",)) in [(e["type"], e["loc"]) for e in error.value.errors()]


@pytest.mark.parametrize(
    ("name", "method", "path", "endpoint"), ROUTES, ids=[f"{name} {method} {path}" for name, method, path, _ in ROUTES]
)
def test_a_route_is_documented_with_its_body_and_error_and_needs_a_key(live, document, name, method, path, endpoint):
    """The error is formatted as the API does that owns the path."""
    operation = document["paths"][re.sub(r":\w+}", "}", path)][method.lower()]
    assert operation["tags"] == [endpoint.name.partition(".")[0]] == [type(APIS[name]).__name__.lower()]
    assert ("requestBody" in operation) == (endpoint.takes is not None)
    schemas = document["components"]["schemas"]
    if endpoint.takes:
        ref = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[ref.rpartition("/")[2]]
        assert schema["title"] == endpoint.takes.__name__ and schema["additionalProperties"] is False
    path = re.sub(r"[{}]|:path", "", path)
    answer = live.ask(path, method=method, key="")
    if path in OPEN_PATHS:
        assert answer.status == 200
        return
    assert answer.status == 401 and owner(path).part_name() == name
    assert form(answer.json) == form(APIS[name].error(ApiError(401, "x")))
    told = operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"]
    jsonschema.validate(answer.json, schemas[told.rpartition("/")[2]])
