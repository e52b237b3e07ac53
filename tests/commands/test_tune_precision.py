"""`settle tune` in bfloat16 on models whose attention scores it does not carry."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from settle.base.run import Run
from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.machine import DtypeProbe
from settle.model.layers.rope import RopeScaling
from settle.plan import training_plan
from settle.train import proof
from tests.commands.test_tune import BETTER
from tests.model.large_scores import KEY_BIAS, SCORE
from tests.train.test_proof import CHECKS
from tests.trained import Trained

QUICK = ["--threads", "1", "--adapter.rank", "4", "--batch-rows", "8", "--rows.held-out", "0.2", "--no-compare"]


@pytest.fixture(scope="module")
def files(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and the trained model as it is and with biases that put a score of 1,450 on every key."""
    folder = tmp_path_factory.mktemp("precision")
    still = RopeScaling(  # the slow pairs stand nearly still, as in Qwen2.5 with its base of a million
        rope_type="llama3", factor=4096.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=512,
    )  # fmt: skip
    part = tiny.part.with_fields(attention_bias=True, mlp_bias=False, rope_scaling=still)
    biases = {n: torch.zeros(s) for n, s in part.parameters().items() if n not in tiny.weights}
    slow, weights = part.head_dim // 2 - 1, {name: weight.clone() for name, weight in tiny.weights.items()}
    for name, weight in weights.items():
        if "q_proj" in name or "k_proj" in name:  # the pair that turns most slowly has the biases alone
            weight.view(-1, part.head_dim, part.hidden_size)[:, [slow, slow + part.head_dim // 2]] = 0
    for name, bias in biases.items():
        if "k_proj" in name:
            bias.view(-1, part.head_dim)[:, slow] = KEY_BIAS
        elif "q_proj" in name:
            bias.view(-1, part.head_dim)[:, slow] = SCORE / 4 * part.head_dim**0.5 / KEY_BIAS
    export_gguf(part, {**weights, **biases}, tiny.tokenizer, folder / "biased.gguf", "f32", {})
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "plain.gguf", "f32", {})
    rows = [{"prompt": f"def f{i}(self):", "completion": BETTER} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which bfloat16 is the faster type."""
    probe = DtypeProbe("bfloat16", {"float32": 1e9, "bfloat16": 3e9})
    monkeypatch.setattr(training_plan, "probe_dtype", lambda *args, **kwargs: probe)


def tune(capsys: Any, base: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    code = main(["tune", str(base), str(base.parent / "rows.jsonl"), *QUICK, *args, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else {}, err


def test_large_scores_are_computed_in_float32_at_the_defaults(files, home, fast_bfloat16, capsys):
    small_steps = ("--steps", "6", "--optimizer.lr", "3e-4")
    code, result, err = tune(capsys, files / "biased.gguf", "--name", "biased", *small_steps)
    assert code == 0, err
    plan = Run.find("biased").read("plan.json")
    assert plan["dtype"] == "bfloat16" and plan["tuning"]["float32_scores"] == [0, 1]
    assert "attention scores reach" in err and "of 2 layers, which are computed in float32 there" in err
    assert [check["passed"] for check in result["proof"]] == [True] * CHECKS


def test_a_model_of_ordinary_scores_stays_as_it_is(files, home, fast_bfloat16, capsys):
    code, _, err = tune(capsys, files / "plain.gguf", "--name", "plain", "--steps", "4")
    assert code == 0, err
    assert Run.find("plain").read("plan.json")["tuning"]["float32_scores"] == []
    assert "computed in float32" not in err


def test_a_refused_proof_chooses_the_slower_type_and_says_what_it_costs(
    files, home, fast_bfloat16, capsys, monkeypatch
):
    monkeypatch.setitem(proof.GRADIENT_TOLERANCE, torch.bfloat16, 1e-4)
    code, result, err = tune(capsys, files / "plain.gguf", "--name", "mended", "--steps", "4")
    assert code == 0, err
    plan = Run.find("mended").read("plan.json")
    assert plan["dtype"] == "float32" and plan["origin"]["dtype"] == "derived" and plan["asked"]["dtype"] is None
    assert "attention scores are computed in float32; a step takes about" in err
    assert ": the run computes in float32; a step takes about" in err
    assert [check["passed"] for check in result["proof"]] == [True] * CHECKS
    assert result["forecast"] == Run.find("mended").read("forecast.json")


def test_a_type_that_was_asked_for_is_not_replaced(files, home, capsys, monkeypatch):
    monkeypatch.setitem(proof.GRADIENT_TOLERANCE, torch.bfloat16, 1e-4)
    code, _, err = tune(capsys, files / "plain.gguf", "--dtype", "bfloat16", "--steps", "4")
    assert code == 1 and "leave --dtype out, and the run chooses float32" in err
