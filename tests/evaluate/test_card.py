"""The card says what is known, leaves out what is not, and no file name can break it."""

from pathlib import Path

import pytest
import yaml

from settle.base.words.amounts import count_in_words
from settle.evaluate.report.card import _amount, _bytes, _cost, _number_of, card, write_card

PLAN = {
    "architecture_name": "llama",
    "num_parameters": 2_100_000,
    "architecture": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    "optimizer_name": "muon",
    "optimizer": {"lr": 0.02},
    "loop": {"tokens_per_step": 4096, "seed": 7},
    "dtype": "float32",
    "versions": {"settle": "0.1.0", "torch": "2.13"},
    "machine": {"processor": "a processor", "cores": {"usable": 2}},
    "corpus": "abc123",
}  # fmt: skip
RESULT = {
    "verdict": "settled",
    "why": "10 % more tokens would bring 0.2 %",
    "best": {"step": 900, "tokens": 3_686_400, "loss": 2.3456, "stderr": 0.01, "bits_per_byte": 1.8765},
    "actual": {"time": 754.0, "energy": 36_000.0, "peak_memory": 512e6, "cost": 0.003},
    "forecast": {"time": {"value": 700, "low": 600, "high": 800}, "loss": {"value": 2.3, "low": 2.2, "high": 2.5}},
    "gate": {
        "passed": True, "prompts_equal": 3, "texts_equal": 210, "kl": 3e-7, "positions": 64,
        "greedy_tokens": 144, "greedy_tokens_equal": 144,
    },
}  # fmt: skip
LEDGER = {
    "read": 120,
    "dropped": {"too short": {"count": 12, "examples": [{"where": "a/b.md:3", "text": "x"}]}},
    "mended": {},
    "skipped": {"not text": {"count": 1, "examples": [{"where": "photo.jpg"}]}},
    "found": {"e-mail addresses": 4},
    "sources": [{"name": f"notes/{i}.md", "kind": "text", "bytes": 1000 + i, "sha256": "f" * 64} for i in range(60)],
    "tokenizer": {"entries": 1024, "bytes_per_token": 3.1},
    "train": {"documents": 100, "tokens": 200_000, "bytes": 640_000},
    "held_out": {"documents": 1, "tokens": 20_000, "bytes": 64_000},
}
TUNED = PLAN | {
    "objective": "sft",
    "tuning": {
        "adapter_name": "lora", "adapter": {"rank": 8, "alpha": 16.0, "targets": ["q", "v"], "dora": None},
        "base_name": "smol|lm", "base": "/models/smol.gguf", "base_sha256": "ab" * 32,
    },
}  # fmt: skip
TUNED_RESULT = RESULT | {
    "forecast": RESULT["forecast"] | {
        "peak_memory": {"value": 5e8, "low": 4e8, "high": 6e8}, "energy": {"value": 9000, "low": 8000, "high": 1e4},
        "cost": {"value": 1.0, "low": 0.5, "high": 2.0, "unit": "EUR"},
    },
    "files": {"lora_gguf": "notes-lora.gguf", "adapter": "adapter"},
    "base": {"transformers": "org/smol"},
    "system_prompt": "Be brief.\nBe right.",
}  # fmt: skip


def tuned(files: tuple[str, ...] = ("lora_gguf", "adapter"), base: str | None = "org/smol") -> str:
    result = {**TUNED_RESULT, "files": dict.fromkeys(files), "base": {"transformers": base}}
    ledger = {**LEDGER, "sources": LEDGER["sources"][:2], "selection": {"documents": 7, "tokens": 10, "bytes": 31}}
    return card("notes", TUNED, result, ledger, ["**Better.**", ""])


@pytest.mark.parametrize("kind", ["trained", "tuned"])
def test_every_line(kind):
    """The whole of a card, as somebody read it."""
    text = card("notes", PLAN, RESULT, LEDGER) if kind == "trained" else tuned()
    assert text == (Path(__file__).parent / "cards" / f"{kind}.txt").read_text(encoding="utf-8")


def test_a_tuned_model_is_loaded_by_what_was_exported():
    whole = tuned(("gguf", "adapter"), base=None)
    assert "llama-cli -m notes.gguf" in whole and "--lora" not in whole and "PeftModel" not in whole
    assert "`settle export notes --to safetensors --out hf`" in whole and 'base_model: "smol|lm"' in whole
    assert "```python" not in tuned(("gguf",)) and "every weight trained" in card(
        "x", TUNED | {"tuning": TUNED["tuning"] | {"adapter_name": "full"}}, {}, {}
    )


def test_a_loss_says_on_how_much_text():
    best = RESULT["best"] | {"held_out_share": 0.25, "stderr": None}
    assert "2.3456 nats per token, on 25% of the held-out text" in card("x", PLAN, {"best": best}, {})
    assert "2.3456 nats per decision" in card("x", {**PLAN, "objective": "decision"}, {"best": best}, {})


def test_the_front_matter_is_yaml(tmp_path):
    write_card(tmp_path / "card.md", "notes", PLAN, RESULT, LEDGER)
    front = yaml.safe_load((tmp_path / "card.md").read_text(encoding="utf-8").split("---")[1])
    assert front["tags"] == ["settle", "llama"] and front["bits_per_byte"] == 1.8765


def test_tolerates_what_is_missing():
    text = card("bare", {}, {}, {})
    assert text.startswith("---\n") and "None" not in text and "## Result" not in text
    for leave in PLAN:
        assert "None" not in card("x", {k: v for k, v in PLAN.items() if k != leave}, {}, {})
    for leave in RESULT:
        assert "None" not in card("x", PLAN, {k: v for k, v in RESULT.items() if k != leave}, LEDGER)
    for leave in LEDGER:
        assert "None" not in card("x", PLAN, RESULT, {k: v for k, v in LEDGER.items() if k != leave})


def test_failed_gate_is_not_hidden():
    text = card("x", PLAN, {**RESULT, "gate": {"passed": False, "first_difference": "token ids differ"}}, LEDGER)
    assert "Failed: token ids differ" in text


def test_file_names_cannot_break_it():
    bad = "a|b`c\n## d <script>"
    ledger = {"sources": [{"name": bad, "bytes": 1, "sha256": "0"}], "dropped": {bad: {"count": 1, "examples": []}}}
    text = card("x", {}, {}, ledger)
    assert (
        "\n## d" not in text and "| `a\\|b'c ## d <script>` | 1 |" in text and "- a\\|b\\`c ## d \\<script>: 1" in text
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (1000, "1 thousand"), (1_234_567, "1.23 million"), (10**9, "1 billion"), (2.5e9, "2.5 billion")],
)
def test_counts(value: float, text: str) -> None:
    assert count_in_words(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 bytes"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (10**9, "1 GB"), ("many", None), (None, None)],
)
def test_bytes(value: object, text: str | None) -> None:
    assert _bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00 EUR"), (0.004, "less than a cent"), (0.01, "0.01 EUR"), (1234.5, "1,234.50 EUR"), (None, None)],
)
def test_costs_have_a_currency(value: object, text: str | None) -> None:
    assert _cost(value, {"unit": "EUR"}) == text


def test_a_cost_without_a_forecast_has_none() -> None:
    assert _cost(2.0, None) == "2.00"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("time", 59.6, "1 min 0 s"),
        ("time", 125, "2 min 5 s"),
        ("time", 3600, "1 h 0 min"),
        ("time", 7384, "2 h 3 min"),
        ("energy", 1800.0, "0.5 Wh"),
        ("energy", 3.6e6, "1 kWh"),
        ("peak_memory", 2_500_000, "2.5 MB"),
        ("time", True, None),
        ("time", None, None),
    ],
)
def test_amounts_have_the_unit_of_what_they_are(key: str, value: object, text: str | None) -> None:
    assert _amount(key, value) == text


def test_one_is_no_plural() -> None:
    assert (_number_of(1, "step"), _number_of(2000, "step"), _number_of("x", "step")) == ("1 step", "2,000 steps", None)
