"""The document of all routes, against the routes."""

import re

import jsonschema
import pytest

from settle.server.app import all_apis
from settle.server.guard import OPEN_PATHS

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def told(live):
    reply = live.ask("/openapi.json")
    assert reply.status == 200 and live.ask("/openapi.json", key="").status == 401
    return reply.json


def routes():
    return [route for shape in all_apis() for route in shape.endpoints()]


def test_it_is_openapi(told):
    schemathesis.openapi.from_dict(told).validate()
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [operation["operationId"] for path in told["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


def test_every_route_is_there_and_no_other(told):
    asked = {(method.lower(), re.sub(r":\w+}", "}", path)) for method, path, _ in routes()}
    assert asked == {(method, path) for path, found in told["paths"].items() for method in found}


def test_bodies_are_named(told):
    for method, path, endpoint in routes():
        operation = told["paths"][re.sub(r":\w+}", "}", path)][method.lower()]
        if endpoint.takes is None:
            assert "requestBody" not in operation
            continue
        ref = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = told["components"]["schemas"][ref.rpartition("/")[2]]
        assert schema["title"] == endpoint.takes.__name__ and schema["additionalProperties"] is False


def test_errors_are_as_told(told, live):
    for path, found in told["paths"].items():
        for method, operation in found.items():
            refused = live.ask(path.replace("{", "").replace("}", ""), method=method.upper(), key="")
            if refused.status == 200:
                assert path in OPEN_PATHS
                continue
            schema = operation["responses"][str(refused.status)]["content"]["application/json"]["schema"]
            jsonschema.validate(refused.json, told["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
