"""The lessons on why models break: what each draws, how it is measured, and what is said of it."""

import importlib.util
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from settle.cli import main
from settle.data.rows.render import KNOWN, fitting
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson
from settle.doctor.measure_lesson import LessonResult, Side, all_lessons, measure_case, measure_lesson
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from settle.infer.live_sampling import logprobs
from settle.library.reference import ModelRef
from settle.model.source import Source
from tests.trained import trained

HEAVY = ("torch", "pyarrow", "tokenizers")
LLAMA = importlib.util.find_spec("llama_cpp_py_sync") is not None
NAMES = ["letters", "carry", "unseen_fact", "window", "template", "temperature", "fewer_bits", "repetition"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    tiny, folder = trained(), tmp_path_factory.mktemp("lessons")
    if not LLAMA:
        return export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, folder / "tiny")
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "tiny.gguf", "f32")


@pytest.fixture(scope="module")
def model(path):
    with LessonModel(ModelRef("tiny", "model", Source.at(path)), threads=1) as model:
        model.reader.chat_template = "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"
        yield model


def drawn(name, model, seed=0):
    one, other = Lesson.part(name)().draw(model, random.Random(seed))
    return one, other, model.reader.text(one.ids), model.reader.text(other.ids)


def test_there_are_eight_in_their_order():
    assert [lesson.part_name() for lesson in all_lessons()] == NAMES
    assert [lesson.number for lesson in all_lessons()] == list(range(1, 9))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "letters"])
def test_a_and_b_have_one_answer_and_come_from_the_seed(name, model):
    one, other, *_ = drawn(name, model)
    assert list(one.answer) == list(other.answer) and len(one.answer) and len(one.ids)
    assert drawn(name, model)[:2] == (one, other) and drawn(name, model, 1)[0] != one


def test_letters_are_those_of_a_token(model, monkeypatch):
    assert all(" " + word in model.reader.text(model.reader.encode(f"x {word}")) for word in model.words)
    assert "only" in Lesson.part("letters")().lacking(model)  # a vocabulary of 512 has few words
    monkeypatch.setitem(vars(model), "words", ["return", "parser", "action", "option", "string", "print"])
    one, other, apart, together = drawn("letters", model)
    assert model.reader.text(one.answer) == model.reader.text(other.answer)
    word = model.reader.text(one.answer).strip().replace("-", "")
    assert word in model.words and f"spell {' '.join(word)} =" in apart and f"spell {word} =" in together


@pytest.mark.parametrize("seed", range(20))
def test_sums_carry_in_b_alone(model, seed):
    one, _, plain, carried = drawn("carry", model, seed)
    result = int(model.reader.text(one.answer))
    for text, carries in ((plain, False), (carried, True)):
        a, b = map(int, text.splitlines()[-1].removesuffix(" =").split(" + "))
        assert a + b == result and (a % 10 + b % 10 > 9) == carries and min(a, b) > 9
    assert plain.splitlines()[:-1] == carried.splitlines()[:-1]  # the same sums before it


def test_a_fact_is_in_the_prompt_or_not(model):
    one, _, told, untold = drawn("unseen_fact", model)
    code = model.reader.text(one.answer).strip()
    assert code.isdigit() and code in told and code not in untold and told.endswith(untold)


def test_the_window_holds_the_fact_or_not(model):
    one, other, inside, outside = drawn("window", model)
    code = model.reader.text(one.answer).strip()
    assert len(one.ids) <= 256 == len(other.ids) and len(one.ids) > 200
    assert code in inside and code not in outside and outside.endswith(inside[-40:])


def test_a_wrong_template_is_another_ones(model, monkeypatch):
    fits = fitting(set(model.reader.tokenizer.tokens))
    right = model.reader.question("x", KNOWN[fits])[:2]
    assert all(list(drawn("template", model, seed)[1].ids[:2]) != right for seed in range(20))
    one, other, own, wrong = drawn("template", model)
    assert own.startswith("Q: ") and not wrong.startswith("Q: ") and own.partition("A:")[2] in wrong
    assert list(one.answer) == [model.reader.tokenizer.turn_end_id]
    monkeypatch.setattr(model.reader, "chat_template", "")
    result = measure_lesson(Lesson.part("template")(), model, 4)
    assert result.verdict == "Not measured: it has no chat template, so none is wrong: it completes text."
    assert result.to_json()["lacking"] and result.is_shown is None


def test_a_case_is_measured_as_the_live_model_has_it(model):
    tiny = trained()
    ids = tiny.tokenizer.encode("def f(self):\n    return self.x").tolist()
    live = logprobs(tiny.model, ids, range(len(ids) - 1)).double().numpy()
    for temperature in (1.0, 1.5):
        side = measure_case(model, Case(ids[:4], ids[4:], temperature))
        rows = live[3:] / temperature
        rows = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        wanted = rows[np.arange(len(rows)), ids[4:]].sum()
        assert side.logprob == pytest.approx(wanted, abs=0.05) and side.tokens == len(ids) - 4
        assert not side.is_likeliest
    likeliest = int(live[5].argmax())
    assert measure_case(model, Case(ids[:6], [likeliest])).is_likeliest


def test_a_tiny_model_does_not_show_everything_and_the_words_say_so(model):
    """It learned for seconds: it neither copies nor repeats, and holds what it is asked for unlikely."""
    repetition, cold = (measure_lesson(Lesson.part(name)(), model, 12) for name in ("repetition", "temperature"))
    assert repetition.is_shown is None and "does not show it beyond chance" in repetition.verdict
    assert repetition.example.prompts[1].count(repetition.example.answer.strip()) == 4
    assert cold.is_shown is False and "shows the opposite" in cold.verdict and cold.to_json()["right"] is None


@pytest.mark.skipif(not LLAMA, reason="needs llama-cpp-py-sync")
def test_fewer_bits_are_a_file_of_its_own(model):
    assert model.lacks_fewer_bits == ""
    result = measure_lesson(Lesson.part("fewer_bits")(), model, 4)
    assert any(one.logprob != other.logprob for one, other in result.sides)
    assert model.small.engine == "llama.cpp" and model.small is not model.reader


def result_of(pairs, **more):
    lesson = SimpleNamespace(**{"wants_low": False, "has_rank": True} | more)
    return LessonResult(lesson, sides=[(Side(a, 2, a > -1), Side(b, 2, b > -1)) for a, b in pairs])


@pytest.mark.parametrize(
    ("pairs", "more", "is_shown", "says"),
    [
        ([(-0.5, -2.0)] * 12, {}, True, "writes the answer 12 times in A and 0 times in B"),
        ([(-0.5, -0.6)] * 12, {}, True, "gets both right every time"),
        ([(-3.0, -4.0)] * 12, {}, True, "gets neither right by itself"),
        ([(-3.0, -2.0)] * 12, {}, False, "shows the opposite: A works better than B only in 0 of 12"),
        (
            [(-3.0, -2.0), (-2.0, -3.0)] * 6,
            {},
            None,
            "does not show it beyond chance: A works better than B in 6 of 12",
        ),
        ([(-3.0, -2.0)] * 12, {"wants_low": True}, True, "shows it: A works better than B in 12 of 12 draws."),
        ([(-1.5, -2.0)] * 3, {}, None, "does not show it beyond chance"),
    ],
)
def test_what_is_said_is_what_was_measured(pairs, more, is_shown, says):
    result = result_of(pairs, **more)
    assert result.is_shown is is_shown and says in result.verdict


def test_the_command(path, home, capsys):
    assert main(["doctor", str(path), "--lesson", "repetition", "--draws", "4", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "8. Repetition" in out and "A wanted:" in out and "A works better" in out
    assert main(["doctor", str(path), "--lesson", "8", "--draws", "4", "--threads", "1", "--json"]) == 0
    (lesson,) = json.loads(capsys.readouterr().out)["lessons"]
    assert lesson["name"] == "repetition" and len(lesson["sides"]) == 4 and lesson["verdict"]
    assert main(["doctor", str(path), "--lesson", "repetitions"]) == 2
    assert "did you mean 'repetition'" in capsys.readouterr().err


def test_the_studio_may_use_it_without_torch_and_the_readers_of_data():
    names = "settle.infer.token_session\nfrom settle.doctor import measure_lesson as m\n"
    code = f"import sys, {names}m.all_lessons(); print([n for n in {HEAVY} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_lesson_that_is_longer_than_the_context_is_not_measured(model, monkeypatch):
    monkeypatch.setattr(model.reader, "context", 40)
    result = measure_lesson(Lesson.part("repetition")(), model, 4)
    assert result.is_shown is None and "and the model has a context of 40" in result.verdict
