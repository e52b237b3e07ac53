"""Files of models that lie about their numbers, types and patterns: a FormatError, at once, and nothing else."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from settle.base.errors import FormatError
from settle.formats.peft import CONFIG, FILE
from settle.formats.safetensors import write_safetensors
from settle.library.facts import read_facts
from settle.model.load_adapter import open_adapter
from settle.model.pretrained import Pretrained
from tests.hostile import KINDS, Mutant, outcome, sound, with_metadata, write_json_to

GGUF = {
    "llama.block_count": [2**31 - 1, 0, 8_716_290, "9", [1, 2], -1],
    "llama.attention.head_count": [0, 2**31, "x", [1, 2]],
    "llama.attention.head_count_kv": ["x"],
    "llama.attention.key_length": ["x", 2**31],
    "llama.embedding_length": [0, "x", [1], 2**31, 2**62],
    "llama.feed_forward_length": [2**31],
    "llama.context_length": [0, -1, 2**62, "x"],
    "llama.rope.dimension_count": [[3], 2**40],
    "llama.rope.freq_base": ["x"],
    "llama.expert_count": [2**31 - 1],
    "tokenizer.ggml.token_type": [["1"] * 512, [1, 2]],
    "tokenizer.ggml.tokens": [["a", "b"], [1] * 512],
    "tokenizer.ggml.merges": [["a", "b c d", "", "x"], [1]],
    "tokenizer.ggml.pre": ["zzz"],
    "tokenizer.ggml.model": ["zzz"],
    "tokenizer.ggml.eos_token_id": [2**31, "x"],
    "tokenizer.ggml.eot_token_id": [[1]],
    "tokenizer.chat_template": [5, ["a"]],
}
DEEP = "[" * 100_000
HF = [
    ("config.json", change)
    for change in (
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": -1}, {"num_hidden_layers": "2"}, {"num_attention_heads": 0},
        {"hidden_size": 10**12}, {"vocab_size": 10**12}, {"rope_scaling": {"rope_type": "llama3", "factor": "x"}},
        {"rope_scaling": [1]}, {"model_type": ["llama"]}, {"model_type": []}, [], DEEP, {"num_experts": 10**9},
    )
] + [
    ("tokenizer.json", change)
    for change in (
        {"added_tokens": [{"id": 4 * 10**9, "content": "x", "special": True}]},
        {"added_tokens": [{"id": -5, "content": "x"}]}, {"added_tokens": [{"id": "5", "content": "x"}]},
        {"added_tokens": "x"}, {"added_tokens": [{"id": 3}]}, {"model": {"type": "BPE", "vocab": ["a"]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [5]}}, {"model": {"type": "BPE", "vocab": {"a": [1]}}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}}}, [], DEEP,
    )
] + [("tokenizer_config.json", {"chat_template": [1]}), ("tokenizer_config.json", {"chat_template": {"a": 1}}),
     ("tokenizer_config.json", DEEP), ("special_tokens_map.json", DEEP), ("generation_config.json", "[1]")]  # fmt: skip
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
PEFT = [
    {"alpha_pattern": {"(([a-z0-9_]|\\.)+)+X": 8}}, {"alpha_pattern": {"(": 8}}, {"alpha_pattern": ["a"]},
    {"alpha_pattern": {"q_proj": "x"}}, {"lora_alpha": "abc"}, {"lora_alpha": {"a": 1}}, {"lora_alpha": float("inf")},
    {"lora_alpha": float("nan")}, {"lora_alpha": -1e308}, {"lora_alpha": True}, {"r": "x"}, {"r": [1]},
    {"lora_dropout": "x"}, {"lora_dropout": 7}, {"bias": [1]}, {"modules_to_save": "x"}, "[1]", DEEP, "", "{",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return sound(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in GGUF.items() for value in values])
def test_gguf(files, tmp_path, key, value):
    path = with_metadata(files["gguf"], tmp_path / "m.gguf", {key: value})
    began = time.process_time()
    with pytest.raises(FormatError):
        Pretrained.open(path)
    assert outcome(lambda: read_facts(path)) in ("read", "refused")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(("file", "change"), HF)
def test_hugging_face(files, tmp_path, file, change):
    folder = shutil.copytree(files["config"], tmp_path / "hf")
    write_json_to(folder / file, change)
    began = time.process_time()
    if file == "generation_config.json":  # only read for what the others lack
        assert outcome(lambda: Pretrained.open(folder)) in ("read", "refused")
    else:
        with pytest.raises(FormatError):
            Pretrained.open(folder)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("change", PEFT)
def test_peft(files, tmp_path, change):
    folder = shutil.copytree(files["peft"], tmp_path / "peft")
    write_json_to(folder / CONFIG, change)
    began = time.monotonic()
    with pytest.raises(FormatError):
        open_adapter(folder)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("shapes", [((0, 64), (64, 0)), ((), (64, 0)), ((4,), (64,)), ((4, 2, 2), (64, 4, 1))])
def test_tensors_of_peft(files, tmp_path, shapes):
    folder = shutil.copytree(files["peft"], tmp_path / "peft")
    halves = zip(("lora_A", "lora_B"), shapes, strict=True)
    write_safetensors(folder / FILE, {f"{PREFIX}.{half}.weight": np.zeros(shape, "f4") for half, shape in halves})
    with pytest.raises(FormatError):
        open_adapter(folder)


def test_patterns_of_peft_mean_what_they_mean_there(files, tmp_path):
    """The first that matches, of names, ends of names and expressions."""
    folder = shutil.copytree(files["peft"], tmp_path / "peft")
    before, alpha = open_adapter(folder), json.loads((folder / CONFIG).read_text())["lora_alpha"]
    factors = {"q_proj": 2, r"layers\.0\..*_proj": 3, r".*\.v_proj": 4}
    write_json_to(folder / CONFIG, {"alpha_pattern": {pattern: f * alpha for pattern, f in factors.items()}})
    after = open_adapter(folder)
    changed = {
        module: np.abs(after.state[name] / before.state[name]).mean()
        for name in before.state
        for module in ("0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.v_proj", "1.self_attn.k_proj")
        if name.endswith(f"{module}.lora_B.weight")
    }
    same = changed.pop("1.self_attn.k_proj")
    assert [factor / same for factor in changed.values()] == pytest.approx([2, 3, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_mutants(files, tmp_path, kind):
    """The short form of `bench/fuzz_files.py`: each file is read or refused."""
    mutant = Mutant(kind, files[kind], tmp_path, seed=1)
    assert outcome(mutant.read) == "read"
    outcomes = []
    for _ in range(150):
        mutant.change()
        outcomes.append(outcome(mutant.read))
    assert set(outcomes) <= {"read", "refused"} and "refused" in outcomes
