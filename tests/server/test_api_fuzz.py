"""The short form of `bench/api_fuzz.py`: the same requests, a few hundred of them."""

import pytest

from tests.server.api_fuzz import misfit, requests, wrong


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
