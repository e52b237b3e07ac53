"""A model's recommended settings are what its answers are drawn with, unless a client sends its own."""

import json

import pytest

from settle.base.event_log import Events
from settle.base.events import Listing
from settle.formats.gguf import export_gguf, read_gguf
from settle.infer.chat_session import Sampling
from settle.library.catalogue import CHAT, TEXT, catalogue_file, recommended_sampling, sampling_keys
from settle.model.source import Source
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_list import show_model
from settle.server.models.model_loader import PoolSettings
from tests.server.conftest import serving
from tests.trained import trained

CHAT_BODY = {"model": "m", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 24, "seed": 3}
KEYS = {"general.sampling.temp": 0.25, "general.sampling.top_k": 7, "general.sampling.penalty_repeat": 1.05}


def written(path, name: str, keys=None):
    model = trained()
    return export_gguf(model.part, model.weights, model.tokenizer, path / f"{name}.gguf", "f32", {"name": name}, keys)


def drawn(live, **settings) -> dict[str, float]:
    """What llama.cpp says that it drew with."""
    reply = live.ask("/completion", {"model": "m", "prompt": "def", "n_predict": 1} | settings)
    used = reply.json["generation_settings"]
    return {name: round(used[name], 4) for name in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")}


@pytest.mark.parametrize("by", ["catalogue", "file"])
def test_a_request_without_settings_is_drawn_as_recommended(tmp_path, by):
    name, keys = ("SmolLM2 135M Instruct", None) if by == "catalogue" else ("anything", KEYS)
    path = written(tmp_path, name, keys)
    wanted = {"temperature": 0.2, "top_p": 0.9} if by == "catalogue" else {"temperature": 0.25, "top_k": 7}
    with serving(tmp_path, PoolSettings(context=512, slots=1, threads=1), (ModelEntry("m", path),)) as live:
        used = drawn(live)
        assert used.items() >= wanted.items()
        assert by == "catalogue" or used["repeat_penalty"] == 1.05
        assert drawn(live, temperature=0.9, top_p=0.5) | wanted == used | {"top_p": 0.5} | wanted  # field by field
        assert drawn(live, temperature=0)["repeat_penalty"] == 1.0  # the likeliest token is that

        def text(**settings) -> str:
            answer = live.ask("/v1/chat/completions", CHAT_BODY | settings).json
            return str(answer["choices"][0]["message"]["content"])

        assert text() == text(**wanted | ({} if by == "catalogue" else {"repeat_penalty": 1.05}))
        assert len({text(), text(temperature=5, top_k=0, top_p=1, min_p=0)}) == 2


def test_files_and_families():
    smollm = {"general.name": "Smollm2 135M 8k Lc100K Mix1 Ep2"}
    assert recommended_sampling(smollm, True).settings == {"temperature": 0.2, "top_p": 0.9}
    assert recommended_sampling({"general.basename": "gemma-3"}, True).settings["top_k"] == 64
    assert recommended_sampling({"general.name": "Qwen2.5 7B Instruct"}, True).settings["repeat_penalty"] == 1.05
    assert recommended_sampling({"general.name": "another"}, True).settings == CHAT
    assert recommended_sampling(smollm, False).settings == TEXT  # it completes plain text
    odd = {"general.sampling.temp": float("nan"), "general.sampling.top_p": 7.0, "general.sampling.top_k": "a"}
    assert recommended_sampling(odd, True).settings == CHAT
    assert all(row.settings["temperature"] <= 1 and row.source for row in catalogue_file().sampling)


def test_what_is_made_of_a_model_recommends_the_same(tmp_path):
    base = read_gguf(written(tmp_path, "SmolLM2-135M-Instruct"))
    keys = sampling_keys(Source(tmp_path / "b.gguf", "gguf", "b"), base.metadata)
    tuned = read_gguf(written(tmp_path, "my-run", keys))
    assert recommended_sampling(tuned.metadata, True) == ({"temperature": 0.2, "top_p": 0.9}, "its file")
    folder = Source(tmp_path, "safetensors", "b")
    config = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "top_p": "much"}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    wanted = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.1}
    assert sampling_keys(folder, {}) == wanted
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"do_sample": False}))
    assert sampling_keys(folder, {}) == {}


def test_chat_takes_what_is_asked_and_else_what_is_recommended():
    metadata = {"general.name": "SmolLM2 135M", "tokenizer.chat_template": "x"}
    assert Sampling(8).settings(metadata) == {"temperature": 0.2, "top_p": 0.9}
    assert Sampling(8, temperature=0.9, top_k=3).settings(metadata) == {"temperature": 0.9, "top_p": 0.9, "top_k": 3}
    assert Sampling(8, temperature=0).settings(metadata) == {"temperature": 0}


def test_a_model_of_plain_text_is_shown_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    from settle.library.store import StoredModel, add_model

    path = written(tmp_path, "plain", {"settle.base": True})
    (tmp_path / "home/models/plain").mkdir(parents=True)
    add_model(StoredModel("plain", "gguf", path, "ab" * 32, "test:plain"))
    listings: list[Listing] = []
    show_model("plain", Events(listeners=[lambda event: listings.extend([event] * isinstance(event, Listing))]))
    rows = {str(row[0]): str(row[1]) for row in listings[0].rows}
    assert rows["tools"] == "no" and "completes it" in rows["chat template"]
    assert rows["answers are drawn with"].startswith("temperature 0.8")
