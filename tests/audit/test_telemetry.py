"""What each dependency would send home, driven under the ledger: with its switches nothing, without them something."""

import os

import pytest

from settle.audit import SWITCHES
from tests.audit.conftest import Watched

HUB = """
os.environ |= {"HF_ENDPOINT": "http://239.255.0.14:4711", "HF_HOME": os.environ["SETTLE_HOME"]}
from huggingface_hub.utils import build_hf_headers, send_telemetry
from huggingface_hub.utils import _telemetry
send_telemetry("settle/test", library_name="settle")
build_hf_headers()  # looks which coding agent runs it
_telemetry._TELEMETRY_QUEUE.join()
"""
STORES = """
try:
    import lancedb
    table = lancedb.connect(os.environ["SETTLE_HOME"]).create_table("t", [{"vector": [0.0, 1.0]}])
    table.search([0.0, 1.0]).limit(1).to_list()
    import chromadb
    client = chromadb.PersistentClient(os.environ["SETTLE_HOME"])
    client.create_collection("telemetry").add(ids=["1"], embeddings=[[0.0, 1.0]], documents=["text"])
except ModuleNotFoundError as e:
    print(e)
"""


@pytest.mark.parametrize("ways", [HUB, pytest.param(STORES, marks=pytest.mark.exhaustive)], ids=["hub", "stores"])
def test_nothing_is_sent_with_the_switches(can_watch, home, monkeypatch, ways):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    watched = Watched(ways)
    assert watched.level == "watched" and not watched.ledger.beyond, watched.ledger.sentence


def test_these_are_the_ways_that_would_send(can_watch, home):
    """Or the test above would pass for want of a way."""
    off = f"for name in {list(SWITCHES)!r}:\n    del os.environ[name]\n"
    assert {c.port for c in Watched(off + HUB).ledger.beyond} == {4711}


def test_a_persons_own_value_stays(monkeypatch):
    from settle.audit import switch_off

    monkeypatch.setenv("DO_NOT_TRACK", "0")
    switch_off()
    assert os.environ["DO_NOT_TRACK"] == "0"
