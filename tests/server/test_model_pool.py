"""Models on demand: loaded, swapped, restarted and ended, with real children."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from settle.base.run import Run
from settle.base.server_state import client_names
from settle.formats.gguf import export_gguf
from settle.library.store import StoredModel, add_model
from settle.server.models.model_catalogue import set_alias
from settle.server.models.model_loader import PoolSettings
from settle.wire.errors import ApiError
from tests.server.conftest import add_adapter, fill_store, serving, until
from tests.trained import trained

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "def f"}], "max_tokens": 8, "temperature": 0}
LONG = CHAT | {"stream": True, "max_tokens": 300, "ignore_eos": True}


@pytest.fixture
def home(tmp_path, monkeypatch, at_home):
    """A home of one's own: these tests change it."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    fill_store(tmp_path)
    return tmp_path


@pytest.fixture
def base(home):
    return home / "models" / "tiny" / "tiny.gguf"


def text(reply) -> str:
    return reply.json["choices"][0]["message"]["content"]


def written(live, model: str) -> str:
    """What a model goes on with: told apart by its weights."""
    body = {"model": model, "prompt": "class A:\n    def f(self", "max_tokens": 16, "temperature": 0}
    return live.ask("/v1/completions", body).json["choices"][0]["text"]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_child_that_dies_costs_its_requests_and_no_other(home):
    with serving(home) as live:
        before = text(live.ask("/v1/chat/completions", CHAT))
        connection = live.open("/v1/chat/completions", LONG)
        response = connection.getresponse()
        assert response.read(20)
        (loaded,) = live.gateway.backend.pool.loaded()
        os.kill(loaded.child.pid, signal.SIGKILL)
        rest = response.read()
        connection.close()
        assert b"engine_died" in rest and rest.endswith(b"data: [DONE]\n\n")
        assert text(live.ask("/v1/chat/completions", CHAT)) == before
        assert live.gateway.metrics.changes["died"] == 1


def test_a_child_that_died_unseen_is_replaced(home):
    with serving(home) as live:
        live.ask("/v1/chat/completions", CHAT)
        (loaded,) = live.gateway.backend.pool.loaded()
        os.kill(loaded.child.pid, signal.SIGKILL)
        assert until(lambda: not loaded.child.alive())
        assert live.ask("/v1/chat/completions", CHAT).status == 200


def test_a_child_that_lives_and_no_longer_answers_is_replaced(home):
    with serving(home) as live:
        live.ask("/v1/chat/completions", CHAT)
        (loaded,) = live.gateway.backend.pool.loaded()
        loaded.child.address = loaded.child.address._replace(netloc="127.0.0.1:9")  # nobody listens there
        assert live.ask("/v1/chat/completions", CHAT).status == 502
        assert not loaded.child.is_open and live.ask("/v1/chat/completions", CHAT).status == 200


def test_a_new_adapter_is_served_while_the_old_child_finishes(home, base):
    add_adapter(home, "one", base, seed=1)
    with serving(home) as live:
        one = written(live, "tiny:one")
        whole = live.ask("/v1/chat/completions", LONG).events
        connection = live.open("/v1/chat/completions", LONG)
        response = connection.getresponse()
        assert response.read(20)
        (old,) = live.gateway.backend.pool.loaded()
        add_adapter(home, "two", base, seed=2)
        two = written(live, "tiny:two")
        assert two != one == written(live, "tiny:one")
        rest = response.read()
        connection.close()
        assert rest.endswith(b"data: [DONE]\n\n") and rest.count(b"data: ") >= len(whole)
        assert until(lambda: [loaded is old for loaded in live.gateway.backend.pool.loaded()] == [False])
        assert live.gateway.metrics.changes["swapped"] == 1


def test_an_adapter_that_was_made_anew_is_served_anew(home, base):
    add_adapter(home, "one", base, seed=1)
    with serving(home) as live:
        first = written(live, "tiny:one")
        run = Run.find("one")
        (run.out / "one-lora.gguf").unlink()
        run.path.rename(run.path.with_name("2020-01-01-tune-old-abcdef"))
        add_adapter(home, "one", base, seed=3)
        assert written(live, "tiny:one") != first


def test_a_broken_adapter_hurts_nobody_else(home, base):
    add_adapter(home, "good", base, seed=1)
    broken = add_adapter(home, "broken", base, seed=2)
    broken.write_bytes(broken.read_bytes()[:1000])
    with serving(home) as live:
        refused = live.ask("/v1/chat/completions", CHAT | {"model": "tiny:broken"})
        assert refused.status == 503 and refused.json["error"]["code"] == "adapter_broken"
        assert live.ask("/v1/chat/completions", CHAT | {"model": "tiny:good"}).status == 200
        assert live.ask("/v1/chat/completions", CHAT).status == 200


def test_idle_models_are_unloaded(home):
    with serving(home, PoolSettings(context=256, slots=1, threads=1, idle_seconds=0.1)) as live:
        live.ask("/v1/chat/completions", CHAT)
        (loaded,) = live.gateway.backend.pool.loaded()
        pid = loaded.child.pid
        assert until(lambda: not live.gateway.backend.pool.loaded()) and until(lambda: gone(pid))
        assert live.ask("/v1/chat/completions", CHAT).status == 200


def test_the_longest_unused_model_makes_room(home):
    with serving(home, PoolSettings(context=256, slots=1, threads=1, most_models=1)) as live:
        assert live.ask("/v1/completions", {"model": "plain", "prompt": "a", "max_tokens": 1}).status == 200
        assert live.ask("/v1/chat/completions", CHAT).status == 200
        assert [loaded.key.path.stem for loaded in live.gateway.backend.pool.loaded()] == ["tiny"]


def test_a_busy_model_does_not_make_room(home, monkeypatch):
    from settle.server.models import model_pool

    monkeypatch.setattr(model_pool, "LEAVE_SECONDS", 0.0)
    with serving(home, PoolSettings(context=512, slots=1, threads=1, most_models=1)) as live:
        connection = live.open("/v1/chat/completions", LONG)
        response = connection.getresponse()
        assert response.read(20)
        refused = live.ask("/v1/completions", {"model": "plain", "prompt": "a", "max_tokens": 1})
        message = refused.json["error"]["message"]
        assert refused.status == 503 and "at most 1 models (--most-models)" in message and "tiny" in message
        assert refused.headers["retry-after"] and "memory" not in message
        assert response.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        assert live.ask("/v1/completions", {"model": "plain", "prompt": "a", "max_tokens": 1}).status == 200


def test_a_full_server_waits_until_a_model_is_idle(home):
    with serving(home, PoolSettings(context=512, slots=1, threads=1, most_models=1)) as live:
        assert live.ask("/v1/chat/completions", CHAT).status == 200
        connection = live.open("/v1/chat/completions", LONG | {"max_tokens": 60})
        assert connection.getresponse().read(20)
        assert live.ask("/v1/completions", {"model": "plain", "prompt": "a", "max_tokens": 1}).status == 200
        connection.close()


def test_the_file_of_a_loaded_model_is_moved_away(home, base):
    with serving(home, PoolSettings(context=512, slots=1, threads=1)) as live:
        assert live.ask("/v1/chat/completions", CHAT).status == 200
        elsewhere = base.rename(base.with_suffix(".away"))
        for _ in range(2):
            gone = live.ask("/v1/chat/completions", CHAT)
            assert gone.status == 503 and "tiny.gguf" in gone.json["error"]["message"], gone.body
            assert "settle failed" not in gone.json["error"]["message"]
        elsewhere.rename(base)
        assert live.ask("/v1/chat/completions", CHAT).status == 200


def test_the_adapter_of_a_loaded_model_is_moved_away(home, base):
    file = add_adapter(home, "notes", base)
    with serving(home, PoolSettings(context=512, slots=1, threads=1)) as live:
        assert live.ask("/v1/chat/completions", CHAT | {"model": "tiny:notes"}).status == 200
        elsewhere = file.rename(file.with_suffix(".away"))
        gone = live.ask("/v1/chat/completions", CHAT | {"model": "tiny:notes"})
        assert gone.status in (404, 503) and "settle failed" not in gone.json["error"]["message"], gone.body
        elsewhere.rename(file)


def test_aliases_that_are_set_at_once(home):
    """45 of 60 got lost: one read before another had written, and all wrote to the same file beside."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: set_alias(f"name{n}", "tiny:notes"), range(60)))
    assert len(client_names()) == 60


def test_what_does_not_fit_is_refused_with_what_would(home):
    model, folder = trained(), home / "models" / "vast"
    folder.mkdir()
    part = model.part.model_copy(update={"max_position_embeddings": 1 << 30})
    path = export_gguf(part, model.weights, model.tokenizer, folder / "vast.gguf", "f32")
    add_model(StoredModel("vast", "gguf", path, "ab" * 32, "test:vast"))
    with serving(home, PoolSettings(context=1 << 30, slots=64, threads=1)) as live:
        refused = live.ask("/v1/chat/completions", CHAT | {"model": "vast"})
        error = refused.json["error"]
        assert refused.status == 503 and error["code"] == "insufficient_memory"
        assert "vast needs" in error["message"] and "models that fit: plain, tiny" in error["message"]
    with serving(home, PoolSettings(threads=1)) as live:  # unasked, it gets a context that fits
        assert live.ask("/v1/chat/completions", CHAT | {"model": "vast"}).status == 200


def test_a_file_that_is_no_model_is_refused_and_the_server_goes_on(home):
    path = home / "models" / "tiny" / "tiny.gguf"
    whole = path.read_bytes()
    with serving(home) as live:
        path.write_bytes(whole[:5000])
        refused = live.ask("/v1/chat/completions", CHAT)
        assert refused.status == 503 and refused.json["error"]["code"] == "model_broken"
        path.write_bytes(whole)
        assert live.ask("/v1/chat/completions", CHAT).status == 200


def test_many_at_once_each_gets_its_own_answer(home, base):
    add_adapter(home, "one", base, seed=1)
    asked = [
        CHAT | {"model": model, "grammar": f'root ::= "answer {number} of {model}"', "max_tokens": 60}
        for number in range(10)
        for model in ("tiny", "tiny:one")
    ]
    with serving(home) as live, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda body: text(live.ask("/v1/chat/completions", body)), asked))
    assert answers == [f"answer {number} of {model}" for number in range(10) for model in ("tiny", "tiny:one")]


def test_a_prompt_that_was_read_with_an_adapter_is_not_used_without_it(home, base):
    """llama.cpp keeps read prompts beside its slots, and would take them for any adapter's."""
    add_adapter(home, "one", base, seed=1)
    prompts = [f"class A{number}:\n    def f(self" for number in range(4)]
    with serving(home, PoolSettings(context=256, slots=1, threads=1)) as live:
        seen: dict[tuple[str, str], set[str]] = {}
        for _ in range(3):
            for prompt in prompts:
                for model in ("tiny", "tiny:one"):
                    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
                    told = live.ask("/v1/completions", body).json["choices"][0]["text"]
                    seen.setdefault((model, prompt), set()).add(told)
    assert {len(answers) for answers in seen.values()} == {1}


def test_too_many_waiting(home):
    with serving(home, PoolSettings(context=512, slots=1, threads=1, waiting=1)) as live:
        held = [live.open("/v1/chat/completions", LONG) for _ in range(2)]
        assert until(lambda: sum(loaded.busy for loaded in live.gateway.backend.pool.loaded()) == 2)
        refused = live.ask("/v1/chat/completions", CHAT)
        assert refused.status == 429 and refused.headers["retry-after"]
        for connection in held:
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
            connection.close()


def test_no_child_outlives_the_server(home):
    with serving(home) as live:
        live.ask("/v1/chat/completions", CHAT)
        pids = [loaded.child.pid for loaded in live.gateway.backend.pool.loaded()]
    assert pids and all(until(lambda pid=pid: gone(pid)) for pid in pids)


def test_refusals_of_use(home):
    with serving(home) as live:
        entry = live.gateway.backend.catalogue.find("tiny")

        async def rerank() -> None:
            async with live.gateway.backend.pool.use(entry, "rerank"):
                pass

        with pytest.raises(ApiError, match="not a reranker"):
            live.run(rerank())
