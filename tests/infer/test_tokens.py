"""Every token of a text with its probability, by llama.cpp and by settle's own model, against the live model."""

import importlib.util
import json

import numpy as np
import pytest

from settle.base.errors import UsageError
from settle.cli import main
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.formats.safetensors import export_safetensors
from settle.infer import token_reader
from settle.infer.live_sampling import ROWS, generate, logprobs
from settle.infer.next_token import Sampler, describe, draw
from settle.infer.token_reader import TokenReader, token_texts
from settle.infer.token_session import beside, branch
from settle.library.reference import ModelRef
from settle.model.source import Source
from tests.model.architectures.cases import CASES
from tests.trained import adapter, merged

TEXT = "def f(self, x):\n    return self.x[1:]"
LLAMA = importlib.util.find_spec("llama_cpp_py_sync") is not None
FORMS = ["folder", pytest.param("gguf", marks=pytest.mark.skipif(not LLAMA, reason="needs llama-cpp-py-sync"))]


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "tiny.gguf", "f32")
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, folder / "hf")
    forms = {"gguf": folder / "tiny.gguf", "folder": folder / "hf"}
    return forms | {"quick": forms["gguf" if LLAMA else "folder"]}  # torch takes seconds to start


def reader_of(path, **settings):
    source = Source.at(path)
    return TokenReader(ModelRef(source.name, "model", source), threads=1, **settings)


@pytest.fixture(scope="module", params=FORMS)
def reader(request, files):
    with reader_of(files[request.param]) as reader:
        assert reader.engine == {"folder": "settle", "gguf": "llama.cpp"}[request.param]
        yield reader


@pytest.fixture(scope="module")
def whole(tiny):
    """The live model's distributions (L, V) after every token of TEXT."""
    ids = tiny.tokenizer.encode(TEXT).tolist()
    return logprobs(tiny.model, ids, range(len(ids))).double().numpy()


def test_every_token_has_the_live_models_probability_rank_and_entropy(tiny, reader, whole):
    ids = tiny.tokenizer.encode(TEXT).tolist()
    reading = reader.read(reader.encode(TEXT))
    assert reading.ids == ids and reading.logprob(0) is None and reading.before(0) is None
    for at in range(1, len(ids) + 1):
        row, place = whole[at - 1], reading.before(at)
        order = np.argsort(-row, kind="stable")
        np.testing.assert_allclose(place.logprobs, row[order[:128]], atol=0.02)
        assert place.entropy == pytest.approx(-(np.exp(row) * row).sum(), abs=0.02)
        assert np.exp(place.logprobs).sum() + (place.counts * np.exp(place.means)).sum() == pytest.approx(1, abs=1e-4)
        assert place.counts.sum() + 128 == tiny.tokenizer.vocab_size
        if at < len(ids):
            assert reading.logprob(at) == pytest.approx(row[ids[at]], abs=0.02)
            better = (row > row[ids[at]] + 0.02).sum(), (row > row[ids[at]] - 0.02).sum()
            assert better[0] < reading.positions.ranks[at - 1] <= better[1]
    end = reader.positions(ids, 5)
    assert len(end) == len(ids) - 4 and end.ranks.tolist() == reading.positions.ranks[4:].tolist()
    np.testing.assert_allclose(end.logprobs, reading.positions.logprobs[4:], atol=1e-3)
    num_bytes = len(tiny.tokenizer.decode(ids[1:]).encode())
    assert reading.bits_per_byte == pytest.approx(
        -sum(reading.logprob(at) for at in range(1, len(ids))) / np.log(2) / num_bytes
    )


def exact(row, sampler):
    """The probability of each token of a row (V,), by the definition of llama.cpp's order."""
    order = np.argsort(-row, kind="stable")
    kept = order[: sampler.top_k or None]
    mass = np.exp(row[kept])
    kept = kept[np.cumsum(mass) - mass < sampler.top_p * mass.sum()]
    out = np.zeros(len(row))
    weights = np.exp((row[kept] - row[kept[0]]) / sampler.temperature)
    out[kept] = weights / weights.sum()
    return out


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (40, 1.0), (0, 0.5), (0, 0.95), (40, 0.9)])
def test_settings_of_sampling_are_computed_without_the_model(whole, temperature, top_k, top_p):
    sampler = Sampler(temperature, top_k, top_p)
    places = describe(whole.astype(np.float32), [-1] * len(whole))
    for at, row in enumerate(whole):
        wanted = exact(row, sampler)
        np.testing.assert_allclose(places.at(at).drawn(sampler), wanted[places.top_ids[at]], atol=1e-3)
    if (top_k, top_p) == (0, 1.0):
        at, token = 3, int(np.argsort(-whole[3])[300])
        tempered = places.at(at).tempered(whole[at, token], temperature)
        assert tempered == pytest.approx(np.log(exact(whole[at], sampler)[token]), abs=5e-3)


def test_tokens_are_drawn_as_often_as_said(whole):
    sampler, random = Sampler(1.2, 10, 0.9), np.random.default_rng(0)
    drawn = [draw(whole[5], sampler, random) for _ in range(2000)]
    shares = np.bincount(drawn, minlength=whole.shape[1]) / len(drawn)
    np.testing.assert_allclose(shares, exact(whole[5], sampler), atol=0.04)
    assert draw(whole[5], Sampler(), random) == whole[5].argmax()


def test_a_logit_that_is_no_number_is_an_error():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not a number"):
            describe(np.array([[0.0, bad, 1.0]], np.float32), [0])


def test_it_writes_what_the_live_model_writes(tiny, reader):
    ids = reader.encode(TEXT)
    wanted = list(generate(tiny.model, ids, 12, temperature=0, stop_ids=[]))
    assert reader.write(ids, 12) == wanted
    # what was read before is reused, also where only its beginning is the same
    assert reader.write([*ids, *wanted[:5]], 7) == wanted[5:]
    assert reader.write(ids[:6], 4) == list(generate(tiny.model, ids[:6], 4, temperature=0))
    hot = Sampler(1.5, 0, 1.0)
    assert reader.write(ids, 8, hot, seed=3) == reader.write(ids, 8, hot, seed=3) != reader.write(ids, 8, hot, seed=4)


def test_a_text_that_grows_is_written_with_few_numbers_of_rows(tiny):
    """Memory grew with every new one: a sample of 64 tokens took 110 MB of a run of 800."""
    ids = tiny.tokenizer.encode(TEXT).tolist()[:7]
    rows = []
    hook = tiny.model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        written = list(generate(tiny.model, ids, 40, temperature=0))
    finally:
        hook.remove()
    assert len(rows) == 40 and set(rows) == {ROWS, 2 * ROWS}
    for token in written:
        (plain,) = logprobs(tiny.model, ids, [len(ids) - 1])
        (filled,) = logprobs(tiny.model, ids, [len(ids) - 1], filled=True)
        assert token == filled.argmax() and (plain - filled).abs().max() < 1e-4
        ids.append(token)


def test_filled_rows_change_no_angle_of_a_long_rope():
    """Segments of more than 16 tokens turn by other angles; 12 tokens are filled up to 32."""
    model, ids = CASES["phi3-longrope"].build(seed=1), list(range(4, 16))
    plain, filled = (logprobs(model, ids, [11], filled=filled) for filled in (False, True))
    assert (plain - filled).abs().max() < 1e-4


def test_a_branch_keeps_what_stands_before_it(reader):
    reading = reader.read(reader.encode(TEXT))
    token = int(reading.before(4).ids[2])
    branched = branch(reader, reading, 4, token, 6, Sampler())
    assert branched.ids[:5] == [*reading.ids[:4], token] and len(branched.ids) == 11
    assert branched.ids[5] == branched.before(5).ids[0]
    with pytest.raises(UsageError, match="no token 99 to branch"):
        branch(reader, reading, 99, token, 6, Sampler())


def test_pieces_of_a_character_say_which(reader):
    ids = reader.encode("a€☃")
    texts = token_texts(reader.tokenizer, ids)
    assert [(text.text, text.whole) for text in texts[-6:]] == [
        ("<0xE2>", "€"), ("<0x82>", "€"), ("<0xAC>", "€"), ("<0xE2>", "☃"), ("<0x98>", "☃"), ("<0x83>", "☃"),
    ]  # fmt: skip
    (lone,) = token_texts(reader.tokenizer, ids[-6:-5])
    assert (lone.text, lone.whole) == ("<0xE2>", "�") and reader.text(ids) == "a€☃"


def test_no_text_is_what_the_model_begins_with(reader):
    reading = reader.read(reader.encode(""))
    assert [text.is_special for text in reading.texts] == [True]
    assert len(reading.to_json()["next"]["top"]) == 20 and reading.bits_per_byte is None


def test_control_tokens_are_text_unless_asked(reader):
    plain, special = reader.encode("x<|endoftext|>"), reader.encode("x<|endoftext|>", specials=True)
    assert len(plain) > 2 and special[-1] == reader.tokenizer.eos_id
    assert reader.read(special).texts[-1].shown == "<|endoftext|>"


def test_of_a_long_text_the_end_is_read(files):
    with reader_of(files["quick"], context=32) as reader:
        ids = reader.encode(TEXT * 4)
        reading = reader.read(ids)
        assert reading.ids == ids[-32:] and reading.skipped == len(ids) - 32
        assert len(reader.write(ids[:30], 9)) == 2  # as many as the context holds


def exported(part, weights, tokenizer, path):
    (export_gguf if LLAMA else export_safetensors)(part, weights, tokenizer, path.with_suffix(".gguf" * LLAMA), "f32")
    return path.with_suffix(".gguf" * LLAMA)


@pytest.fixture(scope="module")
def reading(files):
    with reader_of(files["quick"]) as reader:
        yield reader.read(reader.encode(TEXT))


def test_a_second_model_beside_it(tiny, reading, tmp_path):
    flat = {name: weight * (0.0 if "lm_head" in name else 1.0) for name, weight in tiny.weights.items()}
    with reader_of(exported(tiny.part, flat, tiny.tokenizer, tmp_path / "flat")) as other:
        pair = beside(reading, other, TEXT)
    assert not pair.difference and pair.gains[0] is None
    for at in range(1, len(reading.ids)):  # that one holds all tokens equally likely
        assert pair.gains[at] == pytest.approx(-np.log(tiny.tokenizer.vocab_size) - reading.logprob(at), abs=1e-3)


def test_a_second_model_with_another_tokenizer(tiny, reading, tmp_path):
    tokenizer = ByteBpeTokenizer.train([TEXT * 30], 400, tmp_path / "words")
    part = tiny.part.model_copy(update={"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id})
    weights = {name: weight.detach() for name, weight in part.build(0).named_parameters()}
    with reader_of(exported(part, weights, tokenizer, tmp_path / "other")) as other:
        pair = beside(reading, other, TEXT)
    assert "there" in pair.difference and list(pair.gains) == []
    assert pair.other.bits_per_byte > pair.one.bits_per_byte


@pytest.mark.parametrize("engine", ["settle", pytest.param("llama.cpp", marks=FORMS[1].marks)])
def test_an_adapter_over_its_base(tiny, files, tmp_path, monkeypatch, engine):
    trained = adapter(tiny.part)
    export_lora(tiny.part, trained, tmp_path / "lora.gguf")
    if engine == "settle":
        monkeypatch.setattr(token_reader, "PACKAGE", "llama_cpp_that_is_not_there")
    base = ModelRef("tiny", "model", Source.at(files["gguf"]))
    with TokenReader(ModelRef("a", "adapter", Source.at(tmp_path / "lora.gguf"), base), threads=1) as reader:
        assert reader.engine == engine
        reading = reader.read(reader.encode(TEXT))
    live = tiny.part.build(0)
    live.load_state_dict(merged(tiny.weights, trained))
    wanted = logprobs(live, reading.ids, range(len(reading.ids) - 1)).numpy()
    np.testing.assert_allclose(
        reading.positions.logprobs[:-1], wanted[np.arange(len(wanted)), reading.ids[1:]], atol=0.03
    )


def test_the_command(files, home, capsys):
    argv = ["tokens", str(files["quick"]), TEXT, "--threads", "1", "--top", "5", "--at", "3", "--take", "2"]
    assert main([*argv, "--max-tokens", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tokens = result["tokens"]
    assert "".join(token["text"] for token in tokens) == TEXT and tokens[0]["probability"] is None
    assert len(tokens[3]["top"]) == 5 and tokens[3]["tail"] and "drawn" not in tokens[3]["top"][0]
    chosen = tokens[3]["top"][1]
    assert result["branch"]["tokens"][3]["id"] == chosen["id"]
    assert result["branch"]["text"].startswith(chosen["text"]) and len(result["branch"]["tokens"]) == 8
    assert main([*argv, "--with", str(files["quick"]), "--temperature", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "change of log p" in out and "+0.00" in out and "drawn" in out and "bits per byte" in err


def test_what_the_command_refuses(files, home, capsys):
    path = str(files["quick"])
    assert main(["tokens", path, "x", "--at", "7"]) == 2
    assert "nothing is predicted at token 7" in capsys.readouterr().err


def test_a_question_in_a_template(reader, monkeypatch):
    asked = reader.question("Why?", "{% for m in messages %}<|endoftext|>{{ m.content }}{% endfor %}!")
    assert asked == [reader.tokenizer.eos_id, *reader.encode("Why?!")]
    monkeypatch.setattr(reader, "chat_template", "")
    with pytest.raises(UsageError, match="has no chat template"):
        reader.question("Why?")
