"""Two models compared blind: the proof that they differ, the context, the order, the votes, the interval."""

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise

import pytest

from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.statistics import add_two_interval
from settle.cli import main
from settle.evaluate.blind.session import (
    SAME_NATS,
    Answers,
    BlindSession,
    engine_beside,
    require_different_weights,
    stamp,
)
from settle.evaluate.blind.votes import FEWEST, AnswerPair, Ballots, add_pair, preferences, reveal, vote
from settle.infer.chat_session import ChatSession, Sampling
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.library.store import stamp_of
from settle.model.source import Source
from tests.studio.made_models import stock

GREEDY = Sampling(24, 0.0, 1.0, 0, None)


@pytest.fixture
def models(home):
    """`tiny` and `tuned` are different weights; `twin` is `tiny` under another name."""
    stock(home)
    return {name: resolve_gguf(name) for name in ("tiny", "tuned", "twin")}


def made_pair(number, conversation=0, weights=("1", "2"), models=("one", "two")) -> AnswerPair:
    pair = AnswerPair(
        time=1.8e9 + number, id=f"p{number}", session="s", conversation=conversation, seed=0, turn=number,
        models=models, weights=weights, a=number % 2, system=None, messages=[{"role": "user", "content": "hi"}],
        answers=("x", "y"), sampling={}, nats=1.0,
    )  # fmt: skip
    add_pair(pair)
    return pair


def vote_for(pair, name):
    """name: of a model, or a vote for neither."""
    vote(pair.id, "ab"[pair.names.index(name)] if name in pair.names else name)


def test_the_same_weights_are_refused_with_a_number_whatever_they_are_called(models):
    with engine_beside(models["tiny"]) as tiny, engine_beside(models["twin"]) as twin:
        with pytest.raises(UsageError, match="tiny and twin are the same weights: .* by more than 0 nats"):
            BlindSession((models["tiny"], models["twin"])).ask((tiny, twin), "hi", GREEDY)
        with engine_beside(models["tuned"]) as tuned:
            apart = require_different_weights(tiny, tuned, ("tiny", "tuned")).nats
            assert apart > 100 * SAME_NATS and math.isfinite(apart)
            assert require_different_weights(tuned, tiny, ("tuned", "tiny")).nats == apart
    with pytest.raises(UsageError, match="compared with itself"):
        BlindSession((models["tiny"], models["tiny"]))
    with pytest.raises(UsageError, match="both are called tiny"):
        BlindSession((models["tiny"], replace(models["tuned"], name="tiny")))


def test_both_answer_the_very_same_messages_and_the_preferred_answer_continues(models):
    session = BlindSession((models["tiny"], models["tuned"]), seed=3)
    engines = {}
    with engine_beside(models["tiny"]) as engines["tiny"], engine_beside(models["tuned"]) as engines["tuned"]:
        pair = list(engines.values())
        for number, (text, choice) in enumerate([("def f(", "b"), ("self", "a"), ("import", "same"), ("x", "")]):
            kept = session.keep(session.ask(pair, text, GREEDY, system="Be short."))
            if choice:
                session.vote(kept.id, choice)
            if number == 2:
                session.forget()
        for kept in session.pairs:
            for name, answer in zip(kept.names, kept.answers, strict=True):
                alone = ChatSession(engines[name], GREEDY, Events(), "Be short.", messages=kept.messages[:-1])
                assert "".join(alone.answer(kept.messages[-1]["content"])) == answer
    assert session.pairs == list(Ballots.read().pairs.values())
    assert all(kept.sampling["seed"] is not None for kept in session.pairs), "drawn once, and the same for both"
    assert any(kept.answers[0] != kept.answers[1] for kept in session.pairs)
    for before, after in pairwise(session.pairs[:3]):
        preferred = before.answers["ab".index(session.votes[before.id])]
        assert after.messages[:-1] == [*before.messages, {"role": "assistant", "content": preferred}]
    assert [len(kept.messages) for kept in session.pairs] == [1, 3, 5, 1]
    assert [kept.conversation for kept in session.pairs] == [0, 0, 0, 1]


def test_a_conversation_that_no_longer_fits_is_refused_and_not_cut_on_one_side(models):
    session = BlindSession((models["tiny"], models["tuned"]))
    with engine_beside(models["tiny"]) as tiny, engine_beside(models["tuned"], 64) as tuned:
        session.keep(session.ask((tiny, tuned), "def f(", GREEDY))
        with pytest.raises(UsageError, match="what was said before"):
            session.keep(session.ask((tiny, tuned), "def g(self): " * 5, GREEDY))
        assert len(session.pairs) == len(Ballots.read().pairs) == 1
        session.forget()
        session.keep(session.ask((tiny, tuned), "def g(", GREEDY))


def test_the_order_is_drawn_for_each_pair_by_the_seed(models):
    def drawn(seed):
        session = BlindSession((models["tiny"], models["tuned"]), seed)
        return [session._draws(turn, "is A") for turn in range(400)]

    assert drawn(1) == drawn(1) != drawn(2)
    for seed in range(5):
        order = drawn(seed)
        assert 150 < sum(order) < 250 and 150 < sum(a == b for a, b in pairwise(order)) < 250


def test_both_answers_are_shown_at_the_pace_of_the_slower_one():
    wait = [threading.Event() for _ in range(3)]

    def fast():
        yield from ("quick ", "and ", "long")

    def slow():
        yield "slow"
        wait[0].wait()
        yield "er"
        wait[1].wait()

    answers = Answers([fast, slow])
    while answers.texts != ["quick and long", "slow"]:
        pass
    assert answers.shown == ["quic", "slow"]
    wait[0].set()
    while answers.texts[1] != "slower":
        pass
    answers.stop()
    wait[1].set()
    assert answers.wait() == ["quick ", "slower"] and answers.is_stopped


def test_what_was_shown_when_it_was_stopped_stays():
    """A short answer that has ended holds up nothing."""
    wait = threading.Event()

    def slow():
        yield "a longer one"
        wait.wait()
        yield " that goes on"

    answers = Answers([lambda: iter_of("short"), slow])
    while answers.shown != ["short", "a longer one"]:
        pass
    answers.stop()
    wait.set()
    assert answers.wait() == ["short", "a longer one"]


def iter_of(*pieces):
    yield from pieces


def test_one_side_that_fails_ends_the_other():
    def fails():
        yield "a"
        raise UsageError("no", "")

    def endless():
        while True:
            yield "b"

    with pytest.raises(UsageError):
        Answers([endless, fails]).wait()


def test_votes_of_several_processes_are_all_kept_and_the_last_one_counts(home):
    pairs = [made_pair(number) for number in range(12)]
    code = "import sys; from settle.evaluate.blind.votes import vote\nfor n in sys.argv[2:]: vote(n, sys.argv[1])"
    names = [pair.id for pair in pairs]
    each = [[sys.executable, "-c", code, choice, *names[at::2]] for choice, at in (("a", 0), ("bad", 1))]
    for process in [subprocess.Popen(command) for command in each]:
        assert process.wait(60) == 0
    assert Ballots.read().votes == {name: ("a", "bad")[at % 2] for at, name in enumerate(names)}
    vote("p0", "same")
    with (home / "votes.jsonl").open("a") as f:
        f.write('{"kind": "vote", "pair": "p1", "vo')  # a crash
    vote("p2", "b")
    kept = Ballots.read().votes
    assert (kept["p0"], kept["p1"], kept["p2"]) == ("same", "bad", "b")


def test_a_full_disk_is_an_error_in_words(home):
    pair = made_pair(0)
    (home / "votes.jsonl").rename(home / "kept")
    (home / "votes.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="cannot write to .*votes.jsonl: No space left"):
        add_pair(pair)


def test_after_the_names_were_shown_a_vote_is_final(home):
    made_pair(0), made_pair(1)
    vote("p0", "a")
    reveal(["p0", "p1"])
    for name in ("p0", "p1"):
        with pytest.raises(UsageError, match="it was shown who wrote"):
            vote(name, "b")
    assert Ballots.read().votes == {"p0": "a"}
    for name, choice, why in (("p9", "a", "no pair of answers"), ("p0", "c", "is no vote")):
        with pytest.raises(UsageError, match=why):
            vote(name, choice)


def test_there_is_an_interval_from_fifteen_votes_on(home):
    for number in range(FEWEST - 1):
        vote_for(made_pair(number, conversation=number), "two" if number < 11 else "same")
    (before,) = preferences(Ballots.read())
    assert before.test is None and before.sentence == "1 more vote is needed for an interval"
    vote_for(made_pair(20, conversation=20), "one")
    (after,) = preferences(Ballots.read())
    assert (after.wins, after.same, after.bad, after.conversations) == ((1, 11), 3, 0, 15)
    assert after.test.difference == add_two_interval(11, 1, 15)
    assert after.sentence.startswith("two is preferred to one: two has 67 more of 100 votes")


def test_turns_of_one_conversation_are_no_independent_votes(home):
    for number in range(FEWEST):
        vote_for(made_pair(number), "two")
    (one,) = preferences(Ballots.read())
    assert one.conversations == 1 and one.sentence.startswith("no difference is shown")


def test_a_model_that_has_changed_is_another_one(home):
    vote_for(made_pair(0), "two")
    vote_for(made_pair(1, weights=("3", "2")), "one")
    vote_for(made_pair(2, weights=("2", "3"), models=("two", "one")), "bad")
    old, new = preferences(Ballots.read())
    assert old.models[0].startswith("one as of 20") and old.votes == 1
    assert new.models == ("one", "two") and new.votes == 2 and new.wins == (1, 0)


def test_a_stamp_is_of_the_whole_model_and_of_the_adapter_over_it(tmp_path):
    paths = {name: tmp_path / f"{name}.gguf" for name in ("base", "lora", "index")}
    for name, path in paths.items():
        path.write_text(name)
    base, lora, index = (ModelRef(n, "model", Source(path, "gguf", n)) for n, path in paths.items())
    lora, index = replace(lora, kind="adapter", base=base), replace(index, kind="collection", base=base)
    assert stamp(base) == stamp_of(paths["base"])
    assert stamp(lora) == f"{stamp_of(paths['base'])}+{stamp_of(paths['lora'])}"
    assert stamp(replace(base, source=replace(base.source, recorded="as pulled"))) == "as pulled"
    assert stamp(index) == stamp_of(paths["index"]), "what answers from it is no part of it"


def test_a_pair_by_command_and_its_vote(models, capsys):
    assert main(["chat", "tiny", "def f(", "--with", "tuned", "--max-tokens", "8", "--json"]) == 0
    out = capsys.readouterr()
    result = json.loads(out.out.splitlines()[-1])
    assert "tiny" not in out.out and "tuned" not in out.out and result["difference_nats"] > 0.1
    pair = Ballots.read().pairs[result["pair"]]
    assert tuple(result["answers"].values()) == pair.answers
    assert main(["chat", "--vote", f"{pair.id}=b", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out) == {"pair": pair.id, "vote": "b", "a": pair.names[0], "b": pair.names[1]}
    assert f"A was {pair.names[0]}, B was {pair.names[1]}" in out.err and "14 more votes" in out.err
    assert main(["chat", "--votes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preferences"][0]["votes"] == 1
    assert main(["chat", "--vote", f"{pair.id}=a"]) == 2
    for more, why in ((["tuned", "--draft", "twin"], "leave --draft out"), (["twin"], "are the same weights")):
        assert main(["chat", "tiny", "x", "--with", *more]) == 2
        assert why in capsys.readouterr().err


def test_a_conversation_on_a_terminal_shows_the_names_at_its_end(models, capsys, monkeypatch):
    lines = iter(["def f(", "x", "b", "/nonsense", "self", "", "/reset", "import", "same", "/bye"])
    seen = []

    def read(prompt):
        seen.append(capsys.readouterr())
        return next(lines)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["chat", "tiny", "--with", "tuned", "--max-tokens", "8"]) == 0
    end = capsys.readouterr().err
    assert not any(" was tiny" in each.err + each.out for each in seen) and "is no vote" in seen[2].err
    pairs = list(Ballots.read().pairs.values())
    assert list(Ballots.read().votes.values()) == ["b", "same"] and [len(p.messages) for p in pairs] == [1, 3, 1]
    for number, (pair, choice) in enumerate(zip(pairs, ("b", "no vote", "same"), strict=True), 1):
        assert f"{number}. {pair.reveal_text}; your vote: {choice}" in end
    assert Ballots.read().revealed == {pair.id for pair in pairs}
