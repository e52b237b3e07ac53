"""Which models of the catalogue can be tuned, and what the pages say of it."""

import json
import runpy
from pathlib import Path

import pytest

import settle
from settle.cli import main
from settle.library.catalogue import catalogue_file
from settle.library.families import can_be_tuned, family_counts, loaded_as, tunable_shares
from settle.model.families import families

ROOT = Path(settle.__file__).parents[1]


def test_the_pages_say_what_the_catalogue_and_the_families_say() -> None:
    made = runpy.run_path(str(ROOT / "bench/family_tables.py"))["made"]()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python bench/family_tables.py"


@pytest.mark.parametrize(
    "family, text", [(family, part) for part, known in families().items() for family in known.MULTIMODAL]
)
def test_a_multimodal_family_has_the_text_model_that_transformers_gives_it(family: str, text: str) -> None:
    from transformers import CONFIG_MAPPING

    assert loaded_as(family) == text == CONFIG_MAPPING[family]().get_text_config().model_type


def test_shares_count_each_model_once() -> None:
    counts, shares, known = family_counts(), tunable_shares(), catalogue_file().known
    assert sum(row.models for row in counts) == shares["all"].models == len(known)
    assert sum(row.tunable for row in counts) == shares["all"].tunable == sum(map(can_be_tuned, known))
    assert sum(row.small for row in counts) == shares["up to 5 B"].models
    small = shares["up to 5 B"]
    assert small.tunable + sum(number for _, number in small.missing) == small.models
    assert loaded_as("qwen3_5") == "qwen3_5_text" and loaded_as("bert") == ""


def test_a_mixture_needs_a_family_with_experts() -> None:
    """Gemma 4 26B-A4B is of the multimodal family of E2B, whose text model is known; but it has experts."""
    known = {model.name: model for model in catalogue_file().known}
    assert can_be_tuned(known["gemma-4-e2b"]) and known["gemma-4-26b-a4b"].shape.experts
    has_experts = any(o.experts for o in families()["gemma4_text"].TINY.options().layers)
    assert can_be_tuned(known["gemma-4-26b-a4b"]) == has_experts


def test_the_command_lists_families(home, capsys) -> None:
    assert main(["models", "--families", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shares"]["all"]["models"] == len(catalogue_file().known)
    assert {"qwen3_5", "llama"} <= {row["family"] for row in found["families"]}
