"""The engine with its real child process."""

import copy
import os
import signal
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest

from settle.base.errors import EngineError, FormatError, ResourceError
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.infer import child_process
from settle.infer.child_process import LONGEST_UNASKED, ChildProcess, unknown_architecture
from settle.infer.engine import Engine
from settle.infer.live_sampling import generate, logprobs
from settle.machine import memory
from tests.infer.conftest import ends_with_its_parent, gone
from tests.trained import adapter, merged


def test_text_to_ids_and_back(tiny, engine):
    text = "def é😀(x):\r\n    return '<|im_end|>'"
    ids = engine.tokenize(text)
    assert ids == tiny.tokenizer.encode(text).tolist()
    assert engine.detokenize(ids) == text
    assert engine.tokenize("<|im_end|>", special=True) == [tiny.tokenizer.turn_end_id]


def test_completion(tiny, engine):
    pieces = list(engine.complete("    def __init__(self", max_tokens=12, temperature=0.0))
    ours = generate(tiny.model, tiny.tokenizer.encode("    def __init__(self"), 12, temperature=0)
    assert len(pieces) > 1
    assert "".join(pieces) == tiny.tokenizer.decode(ours)


def test_same_seed_same_answer(engine):
    first, again, other = ("".join(engine.complete("self.", 30, 1.0, seed=s)) for s in (7, 7, 8))
    assert first == again != other


def test_stop_string(engine):
    whole = "".join(engine.complete("    def __init__(self", 40, 0.0))
    word = whole[8:10]
    assert "".join(engine.complete("    def __init__(self", 40, 0.0, stop=[word])) == whole.split(word)[0]


def test_leaving_an_answer_early_leaves_the_engine_usable(engine):
    answer = engine.complete("self.", 400, 1.0, seed=1)
    next(answer)
    answer.close()
    assert engine.tokenize("a")


def test_distribution(tiny, engine):
    ids = tiny.tokenizer.encode("        return self").tolist()
    file = engine.next_token_logprobs(ids)
    live = logprobs(tiny.model, ids, [len(ids) - 1])[0]
    assert len(file) == tiny.tokenizer.vocab_size
    assert max(abs(file[i] - float(live[i])) for i in file) < 0.02
    assert list(file) == sorted(file, key=file.get, reverse=True)


def test_distribution_where_half_a_character_or_an_end_is_likeliest(tiny, engine):
    """llama.cpp leaves probabilities out when it draws such a token."""
    for text in ("\x00é\udc80"[:2], "x = '日", tiny.held_out[0][-60:]):
        ids = tiny.tokenizer.encode(text).tolist()
        for end in range(1, len(ids) + 1):
            assert len(engine.next_token_logprobs(ids[:end], top=3)) == 3


def test_prompt_longer_than_the_context(tiny, engine):
    with pytest.raises(EngineError, match="shorten the prompt"):
        list(engine.complete([5] * 600, 1))
    assert engine.tokenize("a")


def test_not_a_gguf_is_never_opened(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(FormatError):
        Engine(tmp_path / "x.gguf")


def test_context_that_memory_does_not_hold(tiny, tmp_path):
    """A file may claim any context: what is allocated is what fits, and too much asked for is a clear error."""
    part = tiny.part.model_copy(update={"max_position_embeddings": (1 << 31) - 1})
    path = export_gguf(part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf")
    available = memory().available
    per_token = 4 * 2 * 2 * 16
    assert 0 < Engine(path).context <= LONGEST_UNASKED
    with pytest.raises(ResourceError, match="ask for"):
        Engine(path, context=1 << 30 if (1 << 30) * per_token > available else (1 << 31) - 1)
    assert Engine(path, context=100).context == 100


def test_context_is_not_said(tiny, tmp_path):
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama.context_length", b"llama.context_lengtH"))
    with pytest.raises(FormatError, match="how long its context is"):
        Engine(path)


def test_what_llama_cpp_cannot_load_says_why(lacking):
    with pytest.raises(EngineError, match="ffn_up"), Engine(lacking):
        pass


def test_a_family_that_neither_knows_is_refused_with_the_nearest(tiny, tmp_path):
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "zebra.gguf", "f32", {})
    path.write_bytes(path.read_bytes().replace(b"llama", b"zebra"))
    with pytest.raises(EngineError, match=r"does not know .* 'zebra' of zebra.gguf; .* nearest one is llama,"):
        Engine(path).__enter__()
    assert "known are: command-r" in str(unknown_architecture("zebra", path))


def test_a_known_family_that_llama_cpp_does_not_know_asks_for_a_newer_one(file):
    error = unknown_architecture("llama", file)
    assert "nearest" not in error.what and "newer llama-cpp-python" in error.fix


def test_a_reason_that_is_written_late_is_read(tmp_path):
    """llama.cpp logs from a thread of its own, which on a busy machine comes to it after stdout has ended."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, sys, time\nsys.stdin.readline()\nos.close(1)\ntime.sleep(1)\n"
        "print('0.1 E error: missing tensor ffn_up', file=sys.stderr, flush=True)\n"
    )
    child = ChildProcess("server_child.py", {}, "x.gguf", {}, 60)
    child._script = script
    with pytest.raises(EngineError, match="ended while loading it: x.gguf\n.*missing tensor ffn_up"):
        child.start()


def test_a_child_of_the_child_that_keeps_stderr_open_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(child_process, "STOP_SECONDS", 0.2)
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys\nsys.stdin.readline()\n"
        "subprocess.Popen(['sleep', '20'], stdin=-3, stdout=-3, process_group=0)\nprint('{}', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = ChildProcess("server_child.py", {}, "x.gguf", {}, 60)
    child._script = script
    child.start()
    began = time.monotonic()
    child.close()
    assert time.monotonic() - began < 15


def test_child_dies_in_mid_answer(file):
    with Engine(file, threads=1) as engine:
        answer = engine.complete("self.", 400, 1.0, seed=1)
        next(answer)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="died"):
            list(answer)
            engine.tokenize("a")


def test_child_ends_while_an_answer_streams(file):
    with Engine(file, threads=1) as engine:
        pid = engine.pid
        answer = engine.complete("self.", 400, 1.0, seed=1)
        next(answer)
    assert gone(pid)


def test_child_ignores_ctrl_c(file):
    with Engine(file, threads=1) as engine:
        os.kill(engine.pid, signal.SIGINT)
        assert engine.tokenize("a")


def test_child_dies_with_its_parent(file):
    assert ends_with_its_parent("settle.infer.engine", "Engine", file)


def test_an_engine_that_cannot_be_reached_is_not_called_dead(engine, monkeypatch):
    monkeypatch.setattr(engine._child, "address", urllib.parse.urlsplit("http://255.255.255.255:9"))  # no one host
    with pytest.raises(EngineError, match="cannot be reached at 255.255.255.255") as caught:
        engine.tokenize("a")
    assert "loopback" in caught.value.fix and engine.alive()


def test_needs_the_key(engine):
    import http.client

    connection = http.client.HTTPConnection(engine._child.address.hostname, engine._child.address.port)
    connection.request("POST", "/tokenize", '{"content": "a"}', {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 401
    assert engine._child.address.hostname == "127.0.0.1"


def test_generate_from_the_live_model(tiny):
    prompt = tiny.tokenizer.encode("    def __init__(self")
    likeliest = list(generate(tiny.model, prompt, 10, temperature=0))
    assert len(likeliest) == 10
    one, again, other = (list(generate(tiny.model, prompt, 20, seed=s)) for s in (1, 1, 2))
    assert one == again != other
    assert list(generate(tiny.model, prompt, 10, temperature=0, stop_ids=likeliest[3:4])) == likeliest[:3]


def test_adapter_is_served_without_a_merge(tiny, file, tmp_path):
    lora = adapter(tiny.part)
    path = export_lora(tiny.part, lora, tmp_path / "lora.gguf")
    whole = export_gguf(tiny.part, merged(tiny.weights, lora), tiny.tokenizer, tmp_path / "merged.gguf", "f32")
    ids = tiny.tokenizer.encode("    def __init__(self").tolist()
    with Engine(whole, threads=1) as other:
        wanted = other.next_token_logprobs(ids)
    with Engine(file, threads=1, adapter=path) as engine:
        served = engine.next_token_logprobs(ids)
        assert max(abs(served[i] - wanted[i]) for i in wanted) < 0.02
        engine.adapter_scale = 0.0
        bare = engine.next_token_logprobs(ids)
    with Engine(file, threads=1) as engine:
        alone = engine.next_token_logprobs(ids)
    assert max(abs(bare[i] - alone[i]) for i in alone) < 1e-4
    assert max(abs(bare[i] - wanted[i]) for i in wanted) > 0.5


def test_a_model_is_no_adapter(file):
    with pytest.raises(FormatError, match="is no LoRA adapter"):
        Engine(file, adapter=file)


def test_questions_at_the_same_time(tiny, file):
    prompts = [tiny.tokenizer.encode(text).tolist() for text in ("self.", "def f(", "return ", "    if x")]
    with Engine(file, 64, threads=1, slots=4) as engine, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ids: engine.answer(ids, 12), prompts))
        assert [engine.answer(ids, 12) for ids in prompts] == together
        assert not together[0][1]


def test_turns_are_opened_where_the_file_says_so(tiny, engine, tmp_path):
    messages = [{"role": "user", "content": "a"}]
    ids = engine.turns(messages)
    assert engine.detokenize(ids[1:]) and ids == engine.tokenize(engine.render(messages), special=True)
    opened = copy.copy(tiny.tokenizer)
    opened.metadata = tiny.tokenizer.metadata | {"tokenizer.ggml.add_bos_token": True}
    path = export_gguf(tiny.part, tiny.weights, opened, tmp_path / "opened.gguf", "f32")
    with Engine(path, threads=1) as other:
        assert other.turns(messages) == [tiny.tokenizer.bos_id, *ids]
        assert other.plain("a") == [tiny.tokenizer.bos_id, *engine.tokenize("a")]


def test_an_answer_held_to_a_grammar(engine):
    grammar = 'root ::= "[" [12] "]" ("." | "!")'
    pieces = engine.complete("    def f(x):", 40, 1.0, seed=3, grammar=grammar)
    said, end = "", {}
    while not end:
        try:
            said += next(pieces)
        except StopIteration as ended:
            end = ended.value
    assert said in {f"[{n}]{mark}" for n in (1, 2) for mark in ".!"} and 0 < end["tokens_predicted"] <= 5
    assert engine.answer("    def f(x):", 40, grammar=grammar)[0][:1] == "["
    with pytest.raises(EngineError, match="grammar"):
        list(engine.complete("a", 4, grammar="root ::= nothing"))
