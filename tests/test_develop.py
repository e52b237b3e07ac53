"""Every part that docs/develop.md shows works as one file of another package; and the page describes the package.

The adapter, format, quantizer, ggml type and reader are also tried to their end where their families are tested.
"""

import ast
import json
import re

import numpy as np
import pytest

from settle.base.event_log import Events
from settle.base.registry import part, parts
from settle.base.run import Run
from settle.cli import main
from settle.data.prepare import prepare
from settle.data.settings import DataSettings
from settle.documents.reader_pool import read_all
from settle.documents.readers import reader_of
from settle.formats.gguf.types import Bars, GgmlType
from settle.jobs.train import JOB
from tests.contracts.test_parts import FAMILIES
from tests.examples import PAGE, example, forget_parts, install

PARTS = {
    "model/adapters": "ia3:IA3",
    "documents/readers": "notes:Notes",
    "data/cleaning": "shouting:Shouting",
    "formats": "kobold:Kobold",
    "shrink/quantizers": "uniform:Uniform",
    "commands": "space:Space",
    "server/apis": "plain:Plain",
}
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def examples(tmp_path_factory, monkeypatch):
    install(tmp_path_factory.mktemp("site"), PARTS, monkeypatch)
    yield
    monkeypatch.undo()
    forget_parts()


def test_every_block_is_tried():
    assert set(re.findall(r"^```python (\w+)\.py$", TEXT, re.M)) == {
        *(part.partition(":")[0] for part in PARTS.values()),
        "tq2_0",
    }


@pytest.mark.parametrize("family", PARTS)
def test_an_example_is_a_part(family):
    name, _, kind = PARTS[family].partition(":")
    found = part(family, name)
    assert found.__name__ == kind and found.part_name() == name and found.__doc__ and found.family() == family
    assert all(field.description for field in found.model_fields.values())
    assert ast.get_docstring(ast.parse(example(name)))


def test_the_families_are_all_named():
    assert set(re.findall(r"^\| `settle/([\w/]+)/` \| `\w+` \|", TEXT, re.M)) == set(FAMILIES)
    for family, contract in re.findall(r"^\| `settle/([\w/]+)/` \| `(\w+)` \|", TEXT, re.M):
        assert all(contract in [base.__name__ for base in kind.__mro__] for kind in parts(family).values())


def test_the_stages_of_a_run_are_those_of_the_job():
    table = TEXT.split("## How a run flows")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == [stage.__name__ for stage in JOB.stages]


def test_the_reader_reads(tmp_path):
    path = tmp_path / "a.notes"
    path.write_text("one\n----\ntwo\n")
    assert reader_of(path.name) == "notes"
    (read,) = read_all([(path, "notes")])
    assert [(block.text, block.place.part) for block in read.blocks] == [("one", "note 1"), ("two", "note 2")]


def test_the_cleaning_pass_cleans(home, tmp_path):
    quiet = [
        f"Document number {i} tells of a quiet day by the sea, of {i * 7} gulls and {i * 3} boats." for i in range(80)
    ]
    rows = [*quiet, "THIS ROW IS SHOUTED FROM ITS BEGINNING TO ITS END AND NOBODY WANTS TO LEARN FROM IT"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpus = prepare([str(path)], DataSettings(), Events())
    assert json.dumps(corpus.ledger).count("mostly capitals") >= 1


def test_the_command_runs(home, capsys):
    run = Run.create("train", "notes")
    (run.path / "events.jsonl").write_text("x" * 1_500_000)
    assert main(["space", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1]) == {"notes": 1_500_000} and "notes: 1.5 MB" in shown.err
    assert main(["space", "--help"]) == 0
    assert "a run; all of them" in capsys.readouterr().out


def test_the_api_answers(home):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    from starlette.testclient import TestClient

    from settle.server.app import build_app
    from settle.server.audit import Audit
    from settle.server.guard import Access, Limits
    from settle.server.models.model_catalogue import ModelCatalogue
    from settle.server.models.model_loader import PoolSettings

    built = build_app(
        ModelCatalogue((), False, {}), PoolSettings(), Access("a-key"), Limits(), Audit(home / "audit.jsonl", False)
    )
    with TestClient(built.asgi, base_url="http://127.0.0.1") as client:
        assert client.get("/plain/models").status_code == 401 and set(client.get("/plain/models").json()) == {"error"}
        answer = client.get("/plain/models", headers={"Authorization": "Bearer a-key"})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
        assert "/plain/models" in client.get("/openapi.json", headers={"Authorization": "Bearer a-key"}).json()["paths"]


def test_the_type_is_a_row():
    row = eval(example("tq2_0"), {"GgmlType": GgmlType, "Bars": Bars})
    assert row.bits == 2.0625 and row.quantized and np.isclose(row.bars.tie, 4.0)
