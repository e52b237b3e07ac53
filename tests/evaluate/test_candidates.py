"""The models of a comparison: what is asked of llama.cpp, and which are read in this process."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from settle.base.errors import FormatError, UsageError
from settle.evaluate.compare import candidate
from settle.evaluate.compare.candidate import TOP, FileModel, LiveModel, _spread, without_thoughts
from settle.evaluate.compare.cases import Case, asking
from settle.formats.gguf import export_gguf
from settle.infer.client import WholeAnswer
from tests.trained import Trained


class Engine:
    """Token n is e^-n likely; a reply of its likeliest ones has only the first two."""

    takes_turns, context, num_vocab, adapter_scale = True, 12, 5, 1.0

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def turns(self, messages: Any, tools: Any) -> list[int]:
        return [0] * len(messages[-1]["content"])

    def plain(self, text: str) -> list[int]:
        return [9, *range(len(text))]

    def answer(self, prompt: list[int], most: int, temperature: float, seed: int) -> WholeAnswer:
        self.asked.append((len(prompt), most, temperature, seed))
        return WholeAnswer(f"<think>x</think> {seed}", seed % 2 == 0, most)

    def next_token_logprobs(self, ids: list[int], top: int | None = None) -> dict[int, float]:
        self.asked.append((tuple(ids), top))
        return {n: -float(n + 1) for n in range(2 if top else 5)}


def test_questions_that_fit_are_answered_with_the_room_there_is() -> None:
    engine, heard = Engine(), [0] * 0
    model = FileModel(engine, "m", 0.25)  # type: ignore[arg-type]
    found = model.answers([asking("abc"), asking("x" * 11), asking("x" * 12)], 8, heard.append, temperature=0.5)
    assert sorted(engine.asked) == [(3, 8, 0.5, 0), (11, 1, 0.5, 1)] and heard == [1, 2, 3]
    assert [(a.text, a.ended, a.asked) for a in found] == [("0", True, True), ("1", False, True), ("", True, False)]
    assert [(a.read, a.written) for a in found] == [(3, 8), (11, 1), (12, 0)]
    assert engine.adapter_scale == 0.25 and model.context == 12 and model.chats
    model.chats = False
    assert model.prompt(asking("ab")) == [9, 0, 1]
    with pytest.raises(UsageError, match="m has no chat template, and row 4 has several turns"):
        model.prompt(Case(4, "", ({"role": "user", "content": "x"},)))


def test_a_token_that_is_none_of_the_likeliest_is_asked_for() -> None:
    engine = Engine()
    (reading,) = FileModel(engine, "m").read([[7, 1, 4]], [1])  # type: ignore[arg-type]
    assert reading.logprobs.tolist() == [-2.0, -5.0]
    assert engine.asked == [((7,), TOP), ((7, 1), TOP), ((7, 1), None)]
    assert np.exp(reading.spread(0)).sum() == pytest.approx(1) and reading.spread(1).tolist() == [-1, -2, -3, -4, -5]


def test_what_is_left_is_spread_evenly() -> None:
    found = _spread({0: np.log(0.5), 3: np.log(0.25)}, 5)
    assert np.exp(found) == pytest.approx([0.5, 0.25 / 3, 0.25 / 3, 0.25, 0.25 / 3])
    assert np.exp(_spread({0: 0.0, 1: np.log(0.5)}, 2)[0]) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [("<think>a</think> b ", "b"), (" <think> a", ""), (" b ", "b"), ("a <think> b", "a <think> b")],
)
def test_thoughts(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


def test_the_live_model_answers_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, heard = [()] * 0, [0] * 0
    tokenizer: Any = SimpleNamespace(
        chat_template="", eos_id=8, turn_end_id=7, bos_id=None, add_bos=False,
        encode=lambda text, special=False: np.arange(len(text)), decode=lambda ids: "".join(map(str, ids)),
    )  # fmt: skip

    def generate(model: Any, prompt: list[int], room: int, *rest: Any) -> list[int]:
        asked.append((len(prompt), room, *rest))
        return [1] * min(room, 2)

    monkeypatch.setattr(candidate, "generate", generate)
    model = LiveModel("model", tokenizer, "m", 5)  # type: ignore[arg-type]
    found = model.answers([asking("ab"), asking("abcd"), asking("abcde")], 4, heard.append, temperature=0.5)
    assert asked == [(2, 3, 0.5, 1.0, 0, (8, 7)), (4, 1, 0.5, 1.0, 1, (8, 7))] and heard == [1, 2, 3]
    assert [(a.text, a.ended, a.asked) for a in found] == [("11", True, True), ("1", False, True), ("", False, False)]
    assert model.tokenize("") == [8] and model.tokenize("ab") == [0, 1]
    tokenizer.add_bos, tokenizer.bos_id = True, 6
    assert model.tokenize("ab") == [6, 0, 1]


def opened(numbers: int) -> Any:
    def load() -> Any:
        return f"model {numbers}"

    part = SimpleNamespace(num_parameters=numbers, max_position_embeddings=99)
    return SimpleNamespace(part=part, load=load, tokenizer=SimpleNamespace(chat_template=""))


def test_models_are_read_here_where_half_of_the_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"base.gguf": opened(100), "tuned.gguf": opened(150)}
    attached: list[Any] = []
    monkeypatch.setattr(candidate, "attach", lambda model, adapter: attached.append((model, adapter)))
    monkeypatch.setattr(candidate, "adapter_of_gguf", lambda path, part: path)
    monkeypatch.setattr(candidate.Pretrained, "open", lambda path: found[path])

    def ref(name: str, weights: str, adapter: str | None = None, adapts: bool = False) -> Any:
        return SimpleNamespace(name=name, weights=weights, adapter=adapter, adapts=lambda base: adapts)

    def read(free: int, tuned: Any) -> Any:
        monkeypatch.setattr(candidate, "memory", lambda: SimpleNamespace(available=free))
        return candidate.readers(ref("base", "base.gguf"), tuned)

    whole = ref("tuned", "tuned.gguf")
    assert read(2 * 4 * 250 - 1, whole) is None  # not a byte less
    ours, theirs = read(2 * 4 * 250, whole)
    assert (ours.name, ours._model, theirs.name, theirs._model) == ("base", "model 100", "tuned", "model 150")
    assert not ours._is_bare and not attached and ours.context == 99
    ours, theirs = read(2 * 4 * 100, ref("tuned", "base.gguf", "lora.gguf", adapts=True))
    assert ours._is_bare and not theirs._is_bare and attached == [("model 100", "lora.gguf")]

    def broken(path: str) -> Any:
        raise FormatError("x", "y")

    monkeypatch.setattr(candidate.Pretrained, "open", broken)
    assert read(10**9, whole) is None


def test_an_interruption_ends_the_answers_in_flight(tiny: Trained, tmp_path: Path) -> None:
    """They are not waited for: the child ends with them, and no thread is left."""
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "tiny.gguf")
    with FileModel.open(path, "tiny", context=512, slots=2) as model:
        pid = model.pid
        assert pid is not None
        with pytest.raises(KeyboardInterrupt):  # after the first of sixteen, two at a time
            model.answers([asking("def f(")] * 16, 400, lambda done: signal.raise_signal(signal.SIGINT))
        assert model.pid is None and not any(t.name.startswith("ThreadPool") for t in threading.enumerate())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
