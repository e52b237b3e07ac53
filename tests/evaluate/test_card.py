"""The card says what is known, leaves out what is not, and no file name can break it."""

import yaml

from settle.evaluate.report.card import card, write_card

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


def test_says_everything(tmp_path):
    write_card(tmp_path / "card.md", "notes", PLAN, RESULT, LEDGER)
    text = (tmp_path / "card.md").read_text()
    for said in (
        "2.1 million parameters", "640 kB of text", "**settled**", "10 % more tokens would bring 0.2 %",
        "too short: 12 (such as `a/b.md:3`)", "not text: 1", "e-mail addresses (4)", "60 files", "1 document",
        "of 120 documents read", "| processor | a processor |", "| cores | 2 |",
        "`notes/59.md`",
        "ffffffffffffffff…", "2.3456 ± 0.0100 nats per token", "1.8765", "12 min 34 s", "10 Wh", "512 MB",
        "11 min 40 s (10 min 0 s – 13 min 20 s)", "KL divergence 3.0e-07", "210 texts", "ollama create notes",
        "llama-cli -m notes.gguf", "lms import notes.gguf", "from transformers import", "3,686,400", "muon (lr 0.02)",
    ):  # fmt: skip
        assert said in text, said
    assert "| loss |" not in text  # forecast, but no actual value to put beside it
    front = yaml.safe_load(text.split("---")[1])
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
