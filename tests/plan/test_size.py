"""The one dial: more time, more text or a faster machine never make a smaller model."""

from types import SimpleNamespace

from settle.machine import accelerator
from settle.plan import size as sizes
from settle.plan.settings import TrainingSettings
from settle.plan.size import PER_UNIQUE_TOKEN, Speed, choose_size, measure_speed
from settle.train.optimizers.muon import Muon


def corpus(tokens: int, vocab_size: int = 1024):
    return SimpleNamespace(train=SimpleNamespace(num_tokens=tokens), tokenizer=SimpleNamespace(vocab_size=vocab_size))


def chosen(monkeypatch, speed: Speed, unique: int, **asked):
    monkeypatch.setattr(sizes, "measure_speed", lambda *_: speed)
    why: dict[str, str] = {}
    return choose_size(TrainingSettings(**asked), corpus(unique), accelerator("cpu"), 0.0, why), why


FAST = Speed(layer=1e-3, flop=5e-12)
SLOW = Speed(layer=1e-2, flop=5e-11)


def test_more_time_and_a_faster_machine_take_a_larger_model(monkeypatch):
    plenty = 10**9
    times = [chosen(monkeypatch, FAST, plenty, time=t)[0].parameters for t in ("1m", "10m", "2h", "2d")]
    assert times == sorted(times) and times[-1] > 4 * times[0]
    assert chosen(monkeypatch, SLOW, plenty, time="2h")[0].parameters < times[2]


def test_a_small_corpus_bounds_the_model(monkeypatch):
    size, why = chosen(monkeypatch, FAST, 200_000, time="8h")
    assert size.parameters == PER_UNIQUE_TOKEN * 200_000 and "the corpus" in why["parameters"]


def test_the_speed_is_really_measured(home, monkeypatch):
    monkeypatch.setattr(sizes, "LARGE", 1_000_000)
    from settle.model.architectures.llama import Llama

    speed = measure_speed(Llama, 512, Muon(), accelerator("cpu"), "float32")
    small, large = (Llama.sized(n, 512, 128) for n in (200_000, 4_000_000))
    assert 0 < speed.step(small, 1024, 128) < speed.step(large, 1024, 128)
