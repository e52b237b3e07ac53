"""Requests with something wrong in them, always the same: a short `bench/api_fuzz.py`, and a walk by /openapi.json."""

import copy
import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.api_fuzz import BODIES, misfit, places_in, requests, wrong

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict")
STEADY = settings(
    max_examples=3,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
OTHER_MODELS = ("/infill", "/fim/completions", "/v1/rerank")
RIGHT = {path: {"model": "tiny"} | body for path, body in BODIES.items() if path not in OTHER_MODELS}
OTHERS = (None, -1, 1.5, "", [], {}, [[]], ["x"], {"x": 1}, [{}], "\u0000")
# objects that may hold any field
FREE = {
    *("input", "arguments", "parameters", "schema", "chat_template_kwargs", "input_schema", "metadata", "logit_bias"),
    "context_management",
}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_sent_is_answered_or_refused(live, seed):
    seen = set()
    for path, body in requests(seed, 75):
        reply = live.ask(path, body)
        seen.add(reply.status)
        fault = wrong(path, body, reply.status, reply.body)
        assert fault is None, (fault, path, body)
    assert {200, 400} <= seen
    assert all(loaded.child.alive() for loaded in live.gateway.backend.pool.loaded())


def test_the_judge_sees_what_is_wrong():
    assert misfit({"type": "object", "required": ["a"]}, "{}") and misfit({"type": "integer"}, "The sea")
    assert misfit({"type": "integer"}, "3") is None and wrong("/x", {}, 500, b"settle failed")


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_what_the_document_allows_and_what_not(live, mode):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    document, statuses = live.ask("/openapi.json").json, []
    # each route once: not again under its other path
    document["paths"] = {
        path: found for path, found in document["paths"].items() if f"/v1{path}" not in document["paths"]
    }
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():

        @STEADY
        @given(operation.ok().as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def ask(case) -> None:
            path, body = case.path, case.body
            if isinstance(body, dict):  # let it end soon
                body |= {name: 2 for name in LENGTHS if type(body.get(name)) is int and body[name] > 2}
            for name, value in (case.path_parameters or {}).items():
                path = path.replace(f"{{{name}}}", quote(str(value), safe="%"))
            has_body = isinstance(body, dict | list | str | int | float | bytes | None)
            answer = live.ask(path, body if has_body else None, method=case.method)
            statuses.append(answer.status)
            assert answer.status < 500 or answer.status == 501, (case.method, case.path, case.body, answer.body)

        ask()
    assert len(statuses) > 50


@pytest.mark.parametrize("path", RIGHT)
def test_something_else_in_every_place_and_a_neighbour_in_every_object(live, path):
    """Every value of a body that is right is made another, and no field is taken that does nothing."""
    assert live.ask(path, RIGHT[path]).status == 200
    for number in range(len(list(places_in(RIGHT[path])))):
        for other in OTHERS:
            body = copy.deepcopy(RIGHT[path])
            holder, key = list(places_in(body))[number]
            holder[key] = other
            answer = live.ask(path, body)
            assert answer.status < 500, (key, other, answer.body)
    for number in range(len(list(_strict(RIGHT[path])))):
        body = copy.deepcopy(RIGHT[path])
        list(_strict(body))[number]["frobnicate"] = 1
        answer = live.ask(path, body)
        assert answer.status == 400 and "frobnicate" in json.dumps(answer.json), (body, answer.body)


def _strict(value, key=None):
    """Yield the objects in a body that take no field that they do not know."""
    if key in FREE and isinstance(value, dict):
        return
    if isinstance(value, dict):
        yield value
    inside = value.items() if isinstance(value, dict) else ((None, v) for v in value) if isinstance(value, list) else ()
    for inner_key, inner in list(inside):
        yield from _strict(inner, inner_key)


@STEADY
@given(st.binary(max_size=40))
def test_no_json(live, raw):
    assert live.ask("/v1/chat/completions", raw, method="POST").status == 400
