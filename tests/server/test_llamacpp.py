"""llama.cpp's own shape and Mistral's for gaps, over a socket, with a real child behind it."""

import shutil

import gguf
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from settle.library.store import StoredModel, add_model

TEXT = {"model": "tiny", "prompt": "def f", "n_predict": 8, "temperature": 0}
GAP = {"model": "gap", "input_prefix": "def f", "input_suffix": "return", "n_predict": 8, "temperature": 0}
MESSAGES = [{"role": "user", "content": "def f"}]


@pytest.fixture(scope="module", autouse=True)
def kinds(stocked):
    """The tiny model as one that fills gaps, and as one that ranks."""
    gap = {f"tokenizer.ggml.fim_{key}_token_id": number for number, key in enumerate(("pre", "suf", "mid"), 1)}
    for name, more in (("gap", gap), ("rank", {"llama.pooling_type": 4})):
        folder = stocked / "models" / name
        folder.mkdir()
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama")
        reader = gguf.GGUFReader(stocked / "models" / "tiny" / "tiny.gguf")
        details = {key: MetadataDetails(gguf.GGUFValueType.UINT32, value) for key, value in more.items()}
        copy_with_new_metadata(reader, writer, details, [])
        writer.close()
        with pytest.MonkeyPatch.context() as patch:  # another room's session may have set a home of its own
            patch.setenv("SETTLE_HOME", str(stocked))
            add_model(StoredModel(name, "gguf", folder / f"{name}.gguf", "", f"test:{name}"))
    yield
    for name in ("gap", "rank"):
        shutil.rmtree(stocked / "models" / name)


def test_completion(live):
    told = live.ask("/completion", TEXT).json
    assert told["content"] and told["stop_type"] == "limit" and told["tokens_predicted"] == 8
    assert told["model"] == "tiny" and told["timings"]["predicted_n"] == 8
    events = live.ask("/completion", TEXT | {"stream": True}).events
    assert "".join(event["content"] for event in events) == told["content"] and events[-1]["stop"] is True
    tokens = live.ask("/tokenize", {"model": "tiny", "content": "def f"}).json["tokens"]
    assert live.ask("/completion", TEXT | {"prompt": tokens}).json["content"] == told["content"]
    assert live.ask("/completion", TEXT | {"prompt": [tokens[0], "f f"]}).json["tokens_evaluated"] == 3
    nothing = live.ask("/completion", TEXT | {"n_predict": 0}).json
    assert nothing["content"] == "" and nothing["tokens_predicted"] == 0


def test_completion_does_what_it_is_asked(live):
    told = live.ask("/completion", TEXT | {"n_probs": 3, "return_tokens": True}).json
    assert len(told["tokens"]) == 8 and all(len(t["top_logprobs"]) == 3 for t in told["completion_probabilities"])
    first = told["tokens"][0]
    for never in ([[first, False]], {str(first): -100}):
        assert live.ask("/completion", TEXT | {"logit_bias": never, "return_tokens": True}).json["tokens"][0] != first
    assert live.ask("/completion", TEXT | {"grammar": 'root ::= "yes"'}).json["content"] == "yes"
    tuned = live.ask("/completion", TEXT | {"model": "tiny:notes"}).json["content"]
    assert live.ask("/completion", TEXT | {"lora": [{"id": "notes"}]}).json["content"] == tuned != told["content"]


def test_infill_reads_everything(live):
    told = live.ask("/infill", GAP).json
    assert told["content"] and told["model"] == "gap"
    counted = told["tokens_evaluated"]
    file = {"text": "import os\nimport sys\n", "filename": "a.py"}
    assert live.ask("/infill", GAP | {"input_extra": [file]}).json["tokens_evaluated"] > counted + 8
    assert live.ask("/infill", GAP | {"prompt": "(self"}).json["tokens_evaluated"] > counted
    events = live.ask("/infill", GAP | {"stream": True}).events
    assert "".join(event["content"] for event in events) == told["content"]
    long = live.ask("/infill", GAP | {"input_prefix": "def f\n" * 400}).json["error"]
    assert long["type"] == "exceed_context_size_error" and long["n_prompt_tokens"] > long["n_ctx"] == 512


@pytest.mark.parametrize("path", ["/fim/completions", "/v1/fim/completions"])
def test_gaps_in_mistrals_form(live, path):
    body = {"model": "gap", "prompt": "def f", "suffix": "return", "max_tokens": 8, "temperature": 0, "random_seed": 1}
    told = live.ask(path, body).json
    choice = told["choices"][0]
    assert choice["message"]["content"] == live.ask("/infill", GAP).json["content"]
    assert choice["finish_reason"] == "length" and told["usage"]["completion_tokens"] == 8
    reply = live.ask(path, body | {"stream": True})
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events)
    assert text == choice["message"]["content"] and reply.body.endswith(b"data: [DONE]\n\n")
    assert reply.events[-1]["usage"] and reply.events[-1]["choices"][0]["finish_reason"] == "length"
    # at the end of a file nothing comes after: any model can go on
    end = live.ask(path, body | {"model": "tiny", "suffix": ""}).json["choices"][0]["message"]["content"]
    assert end == live.ask("/completion", TEXT).json["content"]


def test_ollama_fills_gaps_too(live):
    options = {"num_predict": 8, "temperature": 0}
    body = {"model": "gap", "prompt": "def f", "suffix": "return", "stream": False, "options": options}
    assert live.ask("/api/generate", body).json["response"] == live.ask("/infill", GAP).json["content"]
    assert "insert" in live.ask("/api/show", {"model": "gap"}).json["capabilities"]


def test_tokens_there_and_back(live):
    told = live.ask("/tokenize", {"model": "tiny", "content": "def f(x)", "with_pieces": True}).json["tokens"]
    assert "".join(token["piece"] for token in told) == "def f(x)"
    back = live.ask("/detokenize", {"model": "tiny", "tokens": [token["id"] for token in told]})
    assert back.json == {"content": "def f(x)"}


def test_apply_template(live):
    told = live.ask("/apply-template", {"model": "tiny", "messages": MESSAGES}).json["prompt"]
    assert told.endswith("<|im_start|>assistant\n") and "def f" in told
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    longer = live.ask("/apply-template", {"model": "tiny", "messages": MESSAGES, "tools": [tool]}).json["prompt"]
    assert "weather" in longer and "def f" in longer


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"])
def test_rerank(live, path):
    body = {"model": "rank", "query": "def f", "documents": ["import os", {"text": "def f(self)"}, "x"]}
    told = live.ask(path, body).json
    assert sorted(result["index"] for result in told["results"]) == [0, 1, 2] and told["usage"]["total_tokens"] > 6
    scores = [result["relevance_score"] for result in told["results"]]
    assert scores == sorted(scores, reverse=True)
    best = live.ask(path, body | {"top_n": 1, "return_documents": True}).json["results"]
    texts = ["import os", "def f(self)", "x"]
    index = told["results"][0]["index"]
    assert best == [told["results"][0] | {"document": {"text": texts[index]}}]


def test_props_tell_no_path(live, stocked):
    live.ask("/completion", TEXT)
    reply = live.ask("/props?model=tiny")
    told = reply.json
    assert told["default_generation_settings"]["n_ctx"] == 512 and told["total_slots"] == 2
    assert told["model_alias"] == "tiny" and told["chat_template"] and str(stocked).encode() not in reply.body
    assert live.ask("/props").status == 400 and live.ask("/props?model=tiny&frob=1").status == 400


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/completion", TEXT | {"frobnicate": 1}, 400, "frobnicate"),
        ("/completion", TEXT | {"temperature": -1}, 400, "temperature"),
        ("/completion", TEXT | {"n_predict": -2}, 400, "n_predict"),
        ("/completion", TEXT | {"id_slot": 1}, 400, "id_slot"),
        ("/completion", TEXT | {"prompt": ["a", "b"]}, 400, "prompt"),
        ("/completion", TEXT | {"prompt": [1, 99999]}, 400, "prompt"),
        ("/completion", TEXT | {"prompt": []}, 400, "prompt"),
        ("/completion", TEXT | {"prompt": {"prompt_string": "x", "multimodal_data": []}}, 400, "prompt"),
        ("/completion", TEXT | {"post_sampling_probs": True}, 400, "post_sampling_probs"),
        ("/completion", TEXT | {"logit_bias": [["x", 1]]}, 400, "logit_bias"),
        ("/completion", TEXT | {"grammar": "root ::= ("}, 400, "grammar"),
        ("/completion", {"prompt": "x"}, 400, "model"),
        ("/completion", TEXT | {"model": "nope"}, 404, "nope"),
        ("/infill", GAP | {"model": "tiny"}, 400, "fill-in-the-middle"),
        ("/infill", GAP | {"input_extra": [{"frob": 1}]}, 400, "input_extra"),
        ("/infill", {"model": "gap", "input_prefix": "x"}, 400, "input_suffix"),
        ("/fim/completions", {"model": "tiny", "prompt": "x", "suffix": "y"}, 400, "fill-in-the-middle"),
        ("/fim/completions", {"model": "gap", "prompt": "x", "min_tokens": 3}, 400, "min_tokens"),
        ("/fim/completions", {"model": "gap", "prompt": "x", "seed": 3, "random_seed": 3}, 400, "random_seed"),
        ("/tokenize", {"model": "tiny", "content": 3}, 400, "content"),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"model": "tiny", "tokens": [512]}, 400, "tokens"),
        ("/apply-template", {"model": "tiny", "messages": []}, 400, "messages"),
        ("/apply-template", {"model": "plain", "messages": MESSAGES}, 400, "template"),
        ("/v1/rerank", {"model": "tiny", "query": "x", "documents": ["y"]}, 400, "reranker"),
        ("/v1/rerank", {"model": "rank", "query": "x", "documents": []}, 400, "documents"),
        ("/v1/rerank", {"model": "rank", "query": "x", "documents": ["y"], "top_n": 0}, 400, "top_n"),
        ("/v1/rerank", {"model": "rank", "query": "x", "documents": ["y"], "texts": ["y"]}, 400, "texts"),
    ],
)
def test_nothing_is_ignored(live, path, body, status, named):
    refused = live.ask(path, body)
    error = refused.json["error"]
    assert refused.status == status == error["code"] and error["type"] and named in error["message"]
