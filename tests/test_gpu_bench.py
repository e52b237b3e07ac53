"""bench/gpu.py without a card: it says so, and its parts that need none run on a CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    import gpu

    assert gpu.main([]) == 3
    assert "no CUDA card can be used here" in capsys.readouterr().err


def test_its_parts_run_on_a_cpu(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import gpu

    out = tmp_path / "gpu.json"
    works = ["--architectures", "llama", "--works", "train", "checkpoint"]
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(out), *works]) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["card", "agreement", "steps"]
    assert found["agreement"] == {"llama train": {"off": 0.0, "waits": 0}, "llama checkpoint": {"off": 0.0, "waits": 0}}
    assert [0 < entry["share_of_ceiling"] < 1.5 for entry in found["steps"]] == [True, True]
    assert gpu.main(["--device", "cpu", "--parts", "peers"]) == 2
    sys.modules.pop("gpu", None)
