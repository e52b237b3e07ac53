"""The pages of the next token and of the lessons, in a real browser, with a model whose tokens are scripts."""

import shutil
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import torch

from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.data.tokenizer.vocabulary import BYTE_CHARACTERS
from settle.formats.gguf import export_gguf
from settle.infer.live_sampling import logprobs
from settle.infer.next_token import Sampler, describe
from settle.infer.token_reader import TokenReader
from settle.library.reference import ModelRef
from settle.library.store import StoredModel, add_model
from settle.model.architectures.llama import Llama
from settle.model.source import Source
from tests.studio.conftest import axe_findings
from tests.studio.payloads import PAYLOADS

TEXT = "the sea was calm, the sea was wide"
PIECES = (b"\xe2", b"\x82", b"\xac")  # of €
START = f"/tokens?model=sea&text={TEXT}"


class Renamed:
    """A tokenizer some of whose tokens are spelled otherwise in a file."""

    def __init__(self, tokenizer, spelled):
        self._tokenizer, self._spelled = tokenizer, spelled

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def gguf_metadata(self):
        metadata = dict(self._tokenizer.gguf_metadata())
        tokens = list(metadata["tokenizer.ggml.tokens"])
        for token, text in self._spelled.items():
            tokens[token] = text
        return metadata | {"tokenizer.ggml.tokens": tokens}


@pytest.fixture(scope="module")
def sea(studio, tmp_path_factory):
    """`sea`, a model that holds scripts the likeliest tokens after TEXT, and `shore` with another tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(studio.home))
        for name, words in (("sea", TEXT), ("shore", "on the shore there is sand")):
            tokenizer = ByteBpeTokenizer.train([words * 50], 300, folder / name)
            part = Llama(
                hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
                num_key_value_heads=1, vocab_size=tokenizer.vocab_size, max_position_embeddings=512,
                bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
            )  # fmt: skip
            model = part.build(0)
            weights = {key: p.detach() * (4 if "lm_head" in key else 1) for key, p in model.named_parameters()}
            ids = tokenizer.encode(TEXT).tolist()
            spelled = {}
            if name == "sea":  # tokens that no text here is made of become scripts, and the likeliest ones
                free = [
                    i for i, raw in enumerate(tokenizer.token_bytes) if raw and raw[0] >= 0x80 and raw not in PIECES
                ]
                texts = ["".join(BYTE_CHARACTERS[byte] for byte in text.encode()) for text in PAYLOADS]
                spelled = dict(zip(free, texts, strict=False))
                assert len(spelled) == len(PAYLOADS)
                last = model(torch.tensor(ids), torch.tensor([0, len(ids)], dtype=torch.int32))[-1].detach()
                for place, token in enumerate(spelled):
                    weights["lm_head.weight"][token] = (6 - 0.1 * place) * last / (last @ last)
            model.load_state_dict(weights)
            (row,) = logprobs(model, ids, [len(ids) - 1])
            path = studio.home / "models" / name / f"{name}.gguf"
            path.parent.mkdir(parents=True)
            export_gguf(part, weights, Renamed(tokenizer, spelled), path, "f32")
            add_model(StoredModel(name, "gguf", path, "ab" * 32, "test:sea"))
            made[name] = SimpleNamespace(path=path, model=model, ids=ids, row=row.double().numpy())
    yield SimpleNamespace(**made)
    for name in made:
        shutil.rmtree(studio.home / "models" / name)


@pytest.fixture
def read(page, sea):
    """The page with TEXT read."""
    page.goto(START)
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("status").filter(has_text="tokens, read by").wait_for()
    page.get_by_role("heading", name="After the text").wait_for()
    return page


def chips(page):
    return page.locator(".tokens button.token:not(.after)")


def column(page, number):
    return [cell.inner_text() for cell in page.locator(f".next-token tbody tr td:nth-child({number})").all()]


def percent(text):
    return 0.0 if text == "never" else float(text.removesuffix(" %")) / 100


def test_a_text_is_shown_as_the_models_tokens(read, sea):
    with TokenReader(ModelRef("sea", "model", Source.at(sea.sea.path)), threads=1) as reader:
        reading = reader.read(reader.encode(TEXT))
    assert chips(read).count() == len(reading.ids)
    assert "".join(chip.inner_text() for chip in chips(read).locator(".text").all()) == TEXT
    second = chips(read).nth(1).get_attribute("aria-label")
    rank, entropy = reading.positions.ranks[0], reading.positions.entropies[0]
    assert f"rank {rank}, entropy {entropy:.1f} nats" in second and second.startswith("Token 1: ")
    assert "not predicted" in chips(read).first.get_attribute("aria-label")
    shown = list(map(percent, column(read, 3)))
    np.testing.assert_allclose(shown, np.exp(reading.before(len(reading.ids)).logprobs[:20]), atol=6e-4)
    assert read.get_by_text("settle tokens sea").is_visible()


def test_the_keyboard_moves_along_the_text(read):
    read.get_by_role("button", name="What comes after the text").focus()
    read.keyboard.press("ArrowLeft")
    last = chips(read).count() - 1
    read.get_by_role("heading", name=f"At token {last}").wait_for()
    assert read.evaluate("document.activeElement.getAttribute('aria-label')").startswith(f"Token {last}: ")
    read.keyboard.press("Home")
    read.get_by_text("Nothing stands before this token").wait_for()
    assert read.evaluate("document.querySelectorAll('.tokens [tabindex=\"0\"]').length") == 1
    read.keyboard.press("End")
    read.get_by_role("heading", name="After the text").wait_for()


def slide(page, label, value, shown):
    """Moves a slider, and waits until the page shows its value."""
    slider = page.get_by_label(label)
    slider.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }", str(value))
    page.locator("label", has_text=label).locator(".value").get_by_text(shown, exact=True).wait_for()


SAMPLERS = [(0.5, 0, 1.0), (1.5, 0, 1.0), (1.0, 5, 1.0), (0.7, 40, 0.9), (0.0, 0, 1.0), (2.0, 0, 0.5)]


def test_sliders_compute_what_is_drawn_without_asking_the_model(read, sea):
    place = describe(sea.sea.row[None].astype(np.float32), [-1]).at(0)
    sent = len(read.seen.urls)
    for temperature, top_k, top_p in SAMPLERS:
        slide(read, "Temperature", temperature, f"{temperature:.2f}" if temperature else "0: the likeliest")
        slide(read, "Top-k", top_k, str(top_k) if top_k else "all tokens")
        slide(read, "Top-p", top_p, f"{top_p:.2f}")
        wanted = place.drawn(Sampler(temperature, top_k, top_p))[:20]
        np.testing.assert_allclose(list(map(percent, column(read, 4))), wanted, atol=2e-3)
    assert len(read.seen.urls) == sent


def test_another_token_continues_the_text_and_can_be_taken_back(read):
    before = chips(read).count()
    slide(read, "Tokens to write", 3, "3")
    chips(read).nth(4).click()
    read.get_by_role("heading", name="At token 4").wait_for()
    choice = read.locator(".next-token .choice").nth(1)
    chosen = choice.inner_text()
    choice.click()
    read.get_by_role("heading", name="After the text").wait_for()
    assert 5 < chips(read).count() <= 8
    assert chips(read).nth(4).locator(".text").inner_text() == chosen
    read.get_by_role("button", name="Take the last branch back").click()
    read.wait_for_function(f"document.querySelectorAll('.tokens .token').length === {before + 1}")
    read.get_by_role("button", name="Take the last branch back").wait_for(state="hidden")


def test_a_second_model_beside_it(page, sea):
    page.goto(START)
    page.get_by_label("A second model beside it").select_option("sea")
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("status").filter(has_text="bits per byte: sea").wait_for()
    assert "other model +0.0 nats" in chips(page).nth(1).get_attribute("aria-label")
    page.get_by_label("A second model beside it").select_option("shore")
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("status").filter(has_text="shore has another tokenizer").wait_for()
    assert "other model" not in chips(page).nth(1).get_attribute("aria-label")


def test_no_script_of_a_model_or_a_text_runs(read):
    seen = set()
    for text in read.locator(".next-token .choice").all_inner_texts():
        seen |= {payload for payload in PAYLOADS if payload in text}
    assert len(seen) >= 10  # the model's likeliest tokens are scripts
    read.locator(".next-token .choice").filter(has_text=PAYLOADS[1]).click()
    read.locator(".tokens .token").filter(has_text=PAYLOADS[1]).first.wait_for()
    read.get_by_label("Text", exact=True).fill("".join(PAYLOADS))
    read.get_by_role("button", name="Read it").click()
    read.get_by_text("settle tokens sea '<script>").wait_for()
    for payload in PAYLOADS[:4]:
        read.goto("/tokens?model=sea&text=" + quote(payload))
        read.get_by_role("button", name="Read it").click()
        read.get_by_role("status").filter(has_text="tokens, read by").wait_for()
    assert read.evaluate("window.__ran") is None


def test_no_script_that_a_model_answers_with_runs(page, sea):
    """In a conversation, and beside another model."""
    for number, two in enumerate(("", "&with=shore")):
        page.goto(f"/chat?model=sea{two}")
        page.get_by_text("Settings", exact=True).click()
        page.get_by_text("More settings").click()
        page.get_by_label("top-k").fill("40")
        page.get_by_label("max-tokens").fill("1")
        page.get_by_label("temperature").fill("2")
        for seed in range(4):
            page.get_by_label("seed").fill(str(seed))
            page.get_by_label("Message", exact=True).fill(TEXT)
            page.keyboard.press("Enter")
            page.locator(".turn").nth(seed).wait_for()
            page.wait_for_function("document.querySelector('[role=log]').ariaBusy === 'false'")
        answers = page.locator(".turn .message:not(.mine)").all_inner_texts()
        assert len(answers) == 4 * (number + 1)
        assert {text for text in answers if text in PAYLOADS} and page.evaluate("window.__ran") is None


def test_odd_texts_and_what_a_model_cannot(page, sea):
    page.goto("/tokens?model=sea&text=€")
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("status").filter(has_text="3 tokens").wait_for()
    assert "<0xE2>, a piece of €" in chips(page).first.get_attribute("aria-label")
    page.get_by_label("Text", exact=True).fill("")
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("status").filter(has_text="1 tokens").wait_for()
    assert "<|endoftext|>" in chips(page).first.inner_text()


def test_the_text_read_has_no_barrier_and_fits_a_phone(read):
    assert axe_findings(read) == []
    read.set_viewport_size({"width": 360, "height": 740})
    assert read.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_lesson_is_measured_on_the_persons_model(page, sea):
    page.goto("/lessons?model=sea")
    page.get_by_role("button", name="Measure lesson 8").click()
    page.get_by_text("A works better than B").wait_for()
    page.get_by_text("settle doctor sea --lesson repetition").wait_for()
    assert page.locator(".versus pre").count() == 2 and "%" in page.locator("table").inner_text()
    page.get_by_role("button", name="Measure lesson 1").click()
    page.get_by_text("Not measured: only").wait_for()
    assert axe_findings(page) == [] and page.evaluate("window.__ran") is None
