"""Comparisons of a tiny model with itself, tuned on a task that it did not know."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from settle.base.errors import DataError, GateError, UsageError
from settle.base.event_log import Events
from settle.data.layouts import Example
from settle.evaluate.compare import forgetting as forgetting_module
from settle.evaluate.compare.against_base import Questions, verify
from settle.evaluate.compare.candidate import FIRST, FileModel, LiveModel, both_in_llamacpp, readers
from settle.evaluate.compare.cases import asking, cases
from settle.evaluate.compare.compare import CompareOptions, compare, report
from settle.evaluate.compare.forgetting import INSTRUCTIONS, forgetting, from_texts, generated
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.library.reference import ModelRef
from settle.model.source import Source
from tests.records import into
from tests.trained import adapter

NAMES = ("self", "parser", "action", "option", "group", "value", "prefix", "usage", "default", "metavar")


def row(question, answer):
    return Example("chat", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


ROWS = [row(f"type of {name}", f"{name} is int") for name in NAMES] * 2


@pytest.fixture(scope="module")
def tuned(tiny):
    """The tiny model after some steps on ROWS: it learned them by heart."""
    model, tokenizer = copy.deepcopy(tiny.model), tiny.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    asker = LiveModel(model, tokenizer, "tiny", 512)
    texts = []
    for case in cases(ROWS[: len(NAMES)]):
        prompt = asker.prompt(case)
        texts.append((prompt, [*prompt, *tokenizer.encode(case.reference).tolist(), tokenizer.turn_end_id]))
    bounds = torch.tensor([0, *(len(ids) - 1 for _, ids in texts)]).cumsum(0).int()
    inputs = torch.tensor([i for _, ids in texts for i in ids[:-1]])
    targets = torch.tensor([i for p, ids in texts for i in [-100] * (len(p) - 1) + ids[len(p) :]])
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(inputs, bounds) @ model.head.T, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    return model.eval()


@pytest.fixture(scope="module")
def files(tiny, tuned, tmp_path_factory):
    """Base and tuned model in llama.cpp."""
    folder = tmp_path_factory.mktemp("compare")
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "base.gguf", "f32")
    weights = {name: p.detach() for name, p in tuned.named_parameters()}
    after = export_gguf(tiny.part, weights, tiny.tokenizer, folder / "tuned.gguf", "f32")
    with FileModel.open(base, "base", context=256) as left, FileModel.open(after, "tuned", context=256) as right:
        yield left, right


@pytest.fixture(scope="module")
def live(tiny, tuned):
    return LiveModel(tiny.model, tiny.tokenizer, "base", 256), LiveModel(tuned, tiny.tokenizer, "tuned", 256)


def test_better(files, live):
    heard = []
    events = Events(listeners=[into(heard)])
    comparison = compare(*files, ROWS, events, CompareOptions(max_tokens=16), live)
    assert comparison.measure == "exact match" and comparison.verdict == "better"
    assert comparison.score.base == 0 and comparison.score.tuned > 0.8
    assert comparison.headline.startswith("better than base: exact match 0.0 % → ")
    assert set(comparison.beside) == {"token F1"}
    assert 0 < len(comparison.changed) <= 10 and comparison.changed[0].gain == 1
    assert comparison.changed[0].tuned == comparison.changed[0].reference
    assert comparison.forgot.degree == "much" and comparison.forgot.kl.difference.low > 0.5
    assert comparison.instructions.rows == len(INSTRUCTIONS)
    stored = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert stored["verdict"] == "better" and stored["forgetting"]["degree"] == "much"
    card = "\n".join(comparison.card_lines())
    assert comparison.headline[1:] in card and "KL from the base" in card
    report(comparison, events)
    tables = [event for event in heard if event["kind"] == "table"]
    assert len(tables) == 1 and all(len(row) == len(t["columns"]) for t in tables for row in t["rows"])
    changed = next(event for event in heard if event["kind"] == "changed")
    assert [row["number"] for row in changed["rows"]] == [change.number for change in comparison.changed]
    assert {"base answers", "tuned answers"} <= {e["what"] for e in heard if e["kind"] == "progress"}


def test_no_different_from_itself(live):
    base = live[0]
    comparison = compare(base, base, ROWS[:4], Events(), CompareOptions(score="f1", max_tokens=4, only_rows=True))
    assert comparison.verdict == "too few rows to tell" and not comparison.changed and comparison.forgot is None
    assert comparison.score.difference.value == 0 and comparison.score.difference.high > 0.4


def test_worse(live):
    assert compare(*live[::-1], ROWS, Events(), CompareOptions(max_tokens=12, only_rows=True)).verdict == "worse"


def test_plain_text_is_read(tiny, live):
    rows = [Example("text", text=text) for text in tiny.held_out]
    comparison = compare(*live, rows, Events(), CompareOptions(only_rows=True))
    assert comparison.measure == "minus bits per byte" and comparison.verdict == "worse"
    assert -6 < comparison.score.base < -1


def test_llama_cpp_reads_as_the_live_model_does(tiny, files, live):
    """The tokens that came exactly; the divergence up to what is spread evenly behind the likeliest ones."""
    familiar = from_texts(live[0], tiny.held_out, "held-out text")
    familiar = type(familiar)(familiar.texts[:4], familiar.begin[:4], familiar.wrote)
    ours, theirs = (forgetting(*pair, familiar, lambda done: None) for pair in (live, files))
    assert theirs.loss.base == pytest.approx(ours.loss.base, abs=2e-3)
    assert theirs.loss.tuned == pytest.approx(ours.loss.tuned, abs=2e-3)
    assert theirs.kl.difference.value == pytest.approx(ours.kl.difference.value, rel=0.05)


def test_base_and_adapter_in_one_process(tiny, files, tmp_path):
    path = export_lora(tiny.part, adapter(tiny.part), tmp_path / "lora.gguf")
    whole = files[0]._engine.path
    base, tuned = FileModel.pair(whole, path, ("base", "lora"), 128)
    questions = [asking("def f("), asking("self.")]
    with tuned:
        before = base.answers(questions, 8, lambda done: None)
        after = tuned.answers(questions, 8, lambda done: None)
        assert base.answers(questions, 8, lambda done: None) == before != after
        assert before == files[0].answers(questions, 8, lambda done: None)


def ref(name, path):
    return ModelRef(name, "model", Source(path, "gguf", name))


def test_readers_read_what_llama_cpp_serves(tiny, files, tmp_path):
    path = export_lora(tiny.part, adapter(tiny.part, strength=0.2), tmp_path / "lora.gguf")
    base = ref("base", files[0]._engine.path)
    familiar = from_texts(files[0], [tiny.held_out[0][:600]], "held-out text")
    lora = replace(ref("lora", path), kind="adapter", base=base)
    for tuned in (lora, ref("tuned", files[1]._engine.path)):
        ours = forgetting(*readers(base, tuned), familiar, lambda done: None)
        with both_in_llamacpp(base, tuned) as served:
            theirs = forgetting(*served, familiar, lambda done: None)
        assert ours.loss.tuned == pytest.approx(theirs.loss.tuned, abs=3e-3) and ours.kl.difference.value > 0.05
        assert ours.kl.difference.value == pytest.approx(theirs.kl.difference.value, rel=0.05)


def test_familiar_text(files, live, monkeypatch):
    monkeypatch.setattr(forgetting_module, "TOKENS", 16)
    text = generated(live[0], lambda done: None)
    assert len(text.texts) == len(text.begin) > 20
    assert all(0 < begin < len(ids) for ids, begin in zip(text.texts, text.begin, strict=True))
    same = forgetting(live[0], live[0], text, lambda done: None)
    assert same.degree == "next to nothing" and same.kl.difference.value == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="no text"):
        from_texts(live[0], ["", ""], "empty.txt")


def test_too_long_to_ask_and_no_template(tiny, files, live):
    long = row("self." * 400, "x")
    comparison = compare(*files, [long, *ROWS[:3]], Events(), CompareOptions(max_tokens=4, only_rows=True))
    assert comparison.unasked == 1 and comparison.score.rows == 3 and "1 row was too long" in comparison.notes()[-1]
    with pytest.raises(DataError, match="no row fits"):
        compare(*files, [long], Events(), CompareOptions(max_tokens=4, only_rows=True))
    with pytest.raises(DataError, match="nothing to compare on"):
        compare(*live, [], Events(), CompareOptions(only_rows=True))
    bare = copy.copy(tiny.tokenizer)
    bare.chat_template = ""
    silent = LiveModel(tiny.model, bare, "bare", 256)
    assert compare(silent, silent, ROWS[:3], Events(), CompareOptions(max_tokens=4, only_rows=True)).score.rows == 3
    talk = Example("chat", [*ROWS[0].messages, *ROWS[1].messages])
    with pytest.raises(UsageError, match="bare has no chat template, and row 1"):
        compare(silent, silent, [talk], Events(), CompareOptions(only_rows=True))


GOOD = {
    "Say goodbye in exactly five words.": "Goodbye, and see you soon!",
    "Describe a forest without using any comma.": "Trees stand close and dim.",
    "Reply with a JSON list of three animals and nothing else.": '["cat", "dog", "owl"]',
    "Give five hobbies as a numbered list from 1 to 5.": "1. a\n2. b\n3. c\n4. d\n5. e",
    "Explain what a volcano is in exactly two sentences.": "It is a mountain. Hot rock comes out of it!",
    "Use the word 'river' exactly three times in an answer about nature.": "River, river and River.",
}


def test_instructions():
    by_prompt = {instruction.prompt: instruction for instruction in INSTRUCTIONS}
    assert len(by_prompt) == len(INSTRUCTIONS) == 40
    for prompt, answer in GOOD.items():
        assert by_prompt[prompt].follows(answer), prompt
        other = "No, I would rather talk about the weather, which is what I do best."
        assert not by_prompt[prompt].follows(other), prompt
    for instruction in INSTRUCTIONS:
        instruction.follows("")  # whatever was said, a check gives an answer


def test_what_there_is_no_time_for_is_left_out_and_said(live):
    """The rows that were asked were asked of both, and lie all over the file."""
    full = compare(*live, ROWS, Events(), CompareOptions(max_tokens=8, only_rows=True))
    assert full.score.rows == len(ROWS) and not full.shortened
    short = compare(*live, ROWS, Events(), CompareOptions(max_tokens=8, seconds=0.0))
    assert short.score.rows == FIRST < len(ROWS)
    assert short.forgot is None and short.instructions is None
    assert any(f"room for {FIRST} of {len(ROWS)} rows" in note for note in short.notes())
    assert short.to_json()["shortened"] == list(short.shortened)
    with_time = compare(*live, ROWS, Events(), CompareOptions(max_tokens=8, only_rows=True, seconds=600.0))
    assert (with_time.score.base, with_time.score.tuned) == (full.score.base, full.score.tuned)


def test_a_verdict_is_verified_by_asking_its_rows_again(files, tiny, tuned, tmp_path):
    """Whatever was changed since is named."""
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "base.gguf", "f32")
    weights = {name: p.detach() for name, p in tuned.named_parameters()}
    after = export_gguf(tiny.part, weights, tiny.tokenizer, tmp_path / "tuned.gguf", "f32")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"messages": row.messages}) for row in ROWS))
    sources = [Source(path, "gguf", path.stem) for path in (base, after)]
    kept = compare(*files, ROWS, Events(), CompareOptions(max_tokens=16, only_rows=True)).keep(tmp_path, *sources)
    heard = []
    events, asked = Events(listeners=[into(heard)]), Questions(rows=rows)
    assert verify(str(after), asked, events, str(base)) == 0
    assert "asked again, 40 of 40 scores are the same" in [event.get("text") for event in heard]
    assert heard[-1]["result"]["verdict"] == "better"

    rows.write_text(rows.read_text().replace("is int", "is float"))
    with pytest.raises(GateError, match="other rows"):
        verify(str(after), asked, events, str(base))
    values = json.loads(kept.read_text())
    kept.write_text(json.dumps(values | {"verdict": "no different"}))
    with pytest.raises(GateError, match="was changed: its rows do not give its verdict"):
        verify(str(after), asked, events, str(base))
    kept.write_text(json.dumps(values | {"candidate": values["base"]}))
    with pytest.raises(GateError, match="the candidate is another file"):
        verify(str(after), asked, events, str(base))
