"""What checks make of figures, by hand: values at their bounds, the fix that is named, facts of a run."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from settle.base.run import Run
from settle.base.run.course import RunCourse
from settle.doctor.checks.answers import missed_passage
from settle.doctor.checks.answers.sampler import USUAL, _effect, repeated_share
from settle.doctor.checks.files import damaged_weights
from settle.doctor.checks.machine import paged_weights
from settle.doctor.checks.training import unstable
from settle.doctor.history import find_history
from settle.doctor.read_transcript import _bodies
from settle.doctor.servers.llama_server import LlamaServer
from settle.doctor.subject import TrainingRun
from settle.doctor.training import facts
from settle.wire.formats import wire_formats


@pytest.mark.parametrize("setting", USUAL)
def test_a_setting_at_its_bounds_is_usual(setting):
    usual = USUAL[setting]
    assert _effect(setting, usual.low) == _effect(setting, usual.high) == _effect(setting, usual.sound) == ""
    assert _effect(setting, usual.low - 0.01) == usual.below and _effect(setting, usual.high + 0.01) == usual.above
    assert _effect(setting, True) == _effect(setting, "9") == _effect("seed", 99) == ""


def test_the_share_of_words_that_were_said_before():
    assert repeated_share(" ".join(map(str, range(40)))) == 0.0
    assert repeated_share("a b c d " * 9) == pytest.approx(1 - 4 / 33)
    assert repeated_share("a b c d " * 7) == 0.0, "too few words to tell"


def test_the_fix_of_passages_that_are_not_read():
    def fix(fewer, other=None):
        return missed_passage._reading_fix(missed_passage.Unread(stage="unread", k=4, fewer=fewer, other=other), "docs")

    assert fix(3).command.endswith("--k 3") and "3 passages" in fix(3).what
    assert fix(1, "big").command.endswith("--k 1") and fix(None, "big").command.endswith("--model big")
    assert fix(None).command == "settle models fit"


def test_what_is_changed_of_a_model_that_does_not_fit():
    asked = paged_weights.Load(Path("a.gguf"), 4096)

    def changed(tokens, other=None):
        return paged_weights._changed(asked, paged_weights.Paging(context=4096, room=1, tokens=tokens, other=other))

    assert (changed(512, "b").context, changed(512, "b").path) == (512, Path("a.gguf"))
    assert (changed(0, "b").context, changed(0, "b").path) == (4096, Path("b"))
    assert changed(0) == asked


def run_with(folder, speeds, losses, verdict=""):
    """Return a run of `settle train` whose files say no more than they have to."""
    steps = [
        SimpleNamespace(step=n, tokens_per_second=speed, loss=loss)
        for n, (speed, loss) in enumerate(zip(speeds, losses, strict=True), 1)
    ]
    course = RunCourse(steps=steps, evals=[SimpleNamespace(step=2, loss=2.0)])
    return SimpleNamespace(
        command="train", events=course, name="r", path=folder,
        read=lambda name: {"loop": {"tokens_per_step": 100}} if name == "plan.json" else {"verdict": verdict},
    )  # fmt: skip


def test_the_time_of_a_step_is_of_those_that_were_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(RunCourse, "read", classmethod(lambda cls, course: course))
    known = facts.facts_of(
        run_with(tmp_path, [0.0, 0.0, 0.0, 50.0, 10.0, 20.0], [3.0, 2.0, math.nan, 2.0, math.inf, 1.0])
    )
    assert known.step_seconds == 100 / 50.0 and known.steps == 6
    assert known.losses == [3.0, 2.0, math.inf, 2.0, math.inf, 1.0] and known.evaluations == [(2, 2.0)]
    assert facts.facts_of(run_with(tmp_path, [0.0], [1.0])).step_seconds is None


@pytest.mark.parametrize(
    ("rollbacks", "verdict", "jump", "strength"),
    [
        (1, "", "", 0.5),
        (2, "", "", 0.98),
        (0, "diverged", "", 0.98),
        (0, "", "it jumped", 0.98),
        (1, "diverged", "", 0.98),
    ],
)
def test_a_run_that_ended_so_is_surer_than_one_that_went_back_once(rollbacks, verdict, jump, strength, monkeypatch):
    known = SimpleNamespace(losses=[1.0], rollbacks=rollbacks, verdict=verdict, rate=1e-3, base=None, evaluations=[])
    monkeypatch.setattr(unstable, "facts_of", lambda run: known)
    monkeypatch.setattr(unstable, "_jump", lambda facts: jump)
    subject = TrainingRun("r", Run(Path("r")))
    (finding,) = unstable.Unstable().detect(subject)
    assert finding.strength == strength
    assert ("left it out" in finding.what) == (strength == 0.5)


HELD_OUT = [(0, 3.0), (4, 2.5), (8, 2.6), (12, 4.2)]


@pytest.mark.parametrize(
    ("evaluations", "losses", "says"),
    [
        (HELD_OUT, [3.0] * 10 + [5.0] * 3, "jumped from 2.50 to 4.20 by step 12"),
        (HELD_OUT, [3.0] * 10 + [0.4] * 3, ""),  # learned by heart: its training loss fell
        (HELD_OUT, [3.0] * 13, ""),  # as high as its first, and no higher
        (HELD_OUT, [3.0] * 10 + [9.0, 2.0, 2.0], ""),  # one step of three
        (HELD_OUT, [], ""),
        ([], [3.0] * 13, ""),
        ([(0, 3.0), (12, 3.69)], [3.0] * 10 + [5.0] * 3, ""),  # less than 0.7 nats
        ([(0, 3.0), (12, 3.71)], [3.0] * 10 + [5.0] * 3, "jumped from 3.00 to 3.71"),
        ([(0, 8.0), (12, 9.19)], [8.0] * 10 + [9.0] * 3, ""),  # less than 15 % of the first
        ([(0, 8.0), (12, 9.21)], [8.0] * 10 + [9.0] * 3, "jumped from 8.00 to 9.21"),
    ],
)
def test_a_jump_is_of_the_held_out_loss_while_that_of_training_is_above_its_first(evaluations, losses, says):
    found = unstable._jump(SimpleNamespace(evaluations=evaluations, losses=losses))
    assert says in found if says else found == ""


def test_the_block_that_fits_least_is_tried_first(monkeypatch):
    drawn = np.random.default_rng(0)
    usual = np.exp(drawn.normal(0, 1, 32))
    sizes = {
        f"blk.{n}.{name}.weight": usual * np.exp(drawn.normal(0, 0.1, 32))
        for n in range(6)
        for name in ("attn_output", "ffn_down")
    }
    sizes["blk.3.ffn_down.weight"] = np.exp(drawn.normal(0, 1, 32))
    sizes["blk.5.ffn_down.weight"] = np.zeros(32)
    tensors = {name: SimpleNamespace(shape=(32, 8), sizes=own) for name, own in sizes.items()}
    tensors |= {
        "token_embd.weight": SimpleNamespace(shape=(99, 32)),
        "blk.0.attn_norm.weight": SimpleNamespace(shape=(32,)),
    }
    monkeypatch.setattr(damaged_weights, "_sizes", lambda tensor: tensor.sizes)
    found = damaged_weights.oddest_blocks(SimpleNamespace(tensors=tensors))
    assert found[0] == 3 and sorted(found) == [0, 1, 2, 3, 4, 5]


def test_bodies_are_found_in_whatever_holds_them():
    assert _bodies({"a": 1}) == [{"a": 1}] and _bodies([{"a": 1}, 2]) == [{"a": 1}] and _bodies(7) == []
    assert _bodies('{"a": 1}') == [{"a": 1}] and _bodies('{"a": 1}\n{"b": 2}\n') == [{"a": 1}, {"b": 2}]
    assert _bodies("nothing at all") == []


def test_a_body_says_its_model_and_its_tokens():
    by_name = {type(each).__name__.removesuffix("Format"): each for each in wire_formats()}
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "system": "Be brief."}
    for name in ("OpenAI", "Anthropic"):
        assert by_name[name].request(asked | {"model": "m"}).model == "m" and by_name[name].request(asked).model == ""
    choices = [{"message": {"content": "hello"}}]
    counted = by_name["OpenAI"].reply({"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert (counted.prompt_tokens, counted.written_tokens, counted.text) == (3, 4, "hello")
    assert by_name["OpenAI"].reply({"choices": choices, "usage": None}).prompt_tokens is None


def test_a_server_without_a_length_of_its_own_has_none():
    from settle.doctor.servers import Served

    def described(params):
        web = SimpleNamespace(ask=lambda path: {"default_generation_settings": {"params": params, "n_ctx": 512}})
        return LlamaServer().described(web, Served("m"))

    assert described({"n_predict": 64, "temperature": 0.5}).settings["max_tokens"] == 64
    assert "max_tokens" not in described({"temperature": 0.5}).settings and described({}).context == 512


def test_one_table_is_the_history_of_a_folder_of_several(tmp_path):
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("step,loss\n1,2.0\n2,1.5\n3,1.2\n")
    assert find_history(tmp_path) == [tmp_path / "a.csv"]
