"""What fits and how fast: the parts of the laws by hand, and the command from end to end."""

import datetime
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.errors import UsageError
from settle.base.statistics import Interval
from settle.cli import main
from settle.library.catalogue import known_model
from settle.machine import described
from settle.plan.cluster.throughput import doublings
from settle.plan.fit import speed
from settle.plan.fit.model_shapes import named_shape
from settle.plan.fit.report import SMALL_PROMPT, fit_row, published_lines
from settle.plan.fit.speed import (
    Z80,
    decode_rate,
    decode_terms,
    drafted,
    further_seconds,
    laws,
    offloaded,
    prefill_rate,
    prefill_terms,
    streamed,
)
from settle.plan.fit.weight_types import matrices_as, read_bytes
from settle.plan.memory_model import MARGIN, SYSTEM, fit, longest_context, need, room

GIB = 2**30
LLAMA, MIXTURE = known_model("llama-3.1-8b").shape, known_model("qwen3-30b-a3b").shape


def test_the_law_is_the_sum_of_its_terms():
    machine, law = described("rtx 4090"), laws()["cuda-2025"]
    terms = decode_terms(LLAMA, "q4_k_m", machine, 1024)
    read = read_bytes(LLAMA, "q4_k_m") + LLAMA.kv_bytes(1024)
    assert terms["bytes"] == pytest.approx(read / machine.bandwidth)
    assert terms["layers"] == pytest.approx(1e-3) and terms["links"] == 0 and terms["ampere_layers"] == 0
    seconds = sum(law.decode.get(name, 0) * value for name, value in terms.items())
    rate = decode_rate(LLAMA, "q4_k_m", machine, 1024)
    assert rate.value == pytest.approx(1 / seconds)
    assert rate.low == pytest.approx(rate.value / rate.high * rate.value) and rate.low < rate.value < rate.high


def test_a_chip_twice_as_fast_reads_in_half_the_time():
    slow, fast = described("m1 max 32 core 64gb"), described("m1 ultra 64 core 64gb")
    for terms in (decode_terms(LLAMA, "q8_0", slow, 512), decode_terms(LLAMA, "q8_0", fast, 512)):
        assert terms["k_bytes"] == 0
    assert decode_terms(LLAMA, "q8_0", slow, 512)["bytes"] == pytest.approx(
        2 * decode_terms(LLAMA, "q8_0", fast, 512)["bytes"]
    )
    assert prefill_terms(LLAMA, "q8_0", slow)["float32"] == pytest.approx(
        2 * prefill_terms(LLAMA, "q8_0", fast)["float32"], rel=0.01
    )


def test_a_batch_reads_the_weights_once():
    machine = described("rtx 3090")
    one, eight = (decode_rate(LLAMA, "q4_k_m", machine, 512, batch) for batch in (1, 8))
    assert one.value > eight.value > one.value / 4  # each text is slower, all together much faster
    # vLLM's steps on one H100, of ML.ENERGY: 14.5 ms for 8 texts and 27.5 ms for 59
    wide, dense = described("h100 sxm"), known_model("qwen3-14b").shape
    for texts, seconds in ((8, 0.0145), (59, 0.0275)):
        assert 1 / decode_rate(dense, "bf16", wide, 3800, texts).value == pytest.approx(seconds, rel=0.35)
    mixture = MIXTURE
    terms = [decode_terms(mixture, "q4_k_m", machine, 16, batch)["bytes"] for batch in (1, 2, 64)]
    assert terms[1] > 1.6 * terms[0] * read_share(mixture) and terms[2] < 64 * terms[0]


def read_share(shape):
    return 1 - shape.beside_experts / shape.active


def test_a_draft_and_layers_elsewhere():
    machine = described("rtx 3090")
    decode = decode_rate(LLAMA, "q4_k_m", machine)
    draft = decode_rate(known_model("llama-3.2-1b").shape, "q4_k_m", machine)
    each = further_seconds(LLAMA, "q4_k_m", machine)
    with_draft = drafted(decode, draft, each)
    assert 1.2 * decode.value < with_draft.value < 3.4 * decode.value
    assert with_draft.low < decode.value * 1.5 < with_draft.high
    assert drafted(decode, draft, each, Interval(0.0, 0.0, 0.0, 0.8)).value < decode.value
    assert offloaded(decode, 0.0, 5e9).value == pytest.approx(decode.value)
    assert offloaded(decode, 0.5, 5e9, 50e9).value == pytest.approx(1 / (0.5 / decode.value + 0.05))
    prefill = prefill_rate(LLAMA, "q4_k_m", machine)
    assert streamed(prefill, 0.0, 5e9).value == pytest.approx(prefill.value)
    assert streamed(prefill, 0.5, 5e9).value == pytest.approx(1 / (1 / prefill.value + 2.5e9 / 16e9 / 512))


def test_every_law_can_be_used():
    for name, law in laws().items():
        assert law.decode and law.mixture and law.prefill, name
        assert decode_rate(LLAMA, "q4_k_m", described("rtx 4090"), law=law).value > 0
        assert prefill_rate(LLAMA, "q4_k_m", described("rtx 4090"), law).value > 0


def test_memory_is_what_its_parts_are():
    machine = described("rtx 4090")
    needed = need(LLAMA, "q8_0", machine, 8192)
    assert needed.cache == LLAMA.kv_bytes(8192)
    assert needed.total == needed.weights + needed.cache + needed.working + needed.logits + needed.overhead
    assert need(LLAMA, "q8_0", machine, 8192, texts=4).cache == 4 * needed.cache
    assert needed.working == 4.0 * 512 * 2 * LLAMA.inner, "the widest layer twice"
    assert needed.logits == 4.0 * 512 * LLAMA.vocab


def test_apple_leaves_a_share_to_its_system_and_two_cards_hold_twice():
    assert room(described("m4 pro 24gb")) == pytest.approx(24 * GIB * 0.667)
    assert room(described("2x rtx 3090")) == pytest.approx(2 * room(described("rtx 3090")))


def test_a_system_that_shares_the_memory_keeps_some_of_it():
    machine = described("jetson agx orin 32gb")
    assert room(machine) == pytest.approx((machine.memory - SYSTEM) * (1 - MARGIN))
    assert room(replace(machine, memory=int(SYSTEM))) == 0 < room(replace(machine, memory=int(SYSTEM) + GIB))
    assert room(described("rtx 4090")) == pytest.approx(described("rtx 4090").memory * (1 - MARGIN))


def test_a_mixture_reads_less_surely():
    law = laws()["cuda-2025"]
    for shape, spread in ((LLAMA, law.prefill_spread), (MIXTURE, 1.5 * law.prefill_spread)):
        rate = prefill_rate(shape, "q4_k_m", described("rtx 4090"))
        assert math.log(rate.high / rate.value) == pytest.approx(Z80 * spread, rel=1e-6)
        assert rate.low * rate.high == pytest.approx(rate.value**2)


def test_layers_that_do_not_fit_are_computed_by_the_processor():
    model, machine = named_shape("llama-3.1-70b"), described("rtx 4090")
    row = fit_row(model, "q4_k_m", machine, 4096)
    missing = 1 - row.fit.share
    assert not row.fit.fits and 0.2 < missing < 0.9
    whole = prefill_rate(model.shape, "q4_k_m", machine, None, SMALL_PROMPT)
    assert row.prefill == streamed(whole, missing, row.fit.need.weights)
    assert row.prefill.value < whole.value and row.prefill.low < whole.low
    decode = decode_rate(model.shape, "q4_k_m", machine, 2048)
    assert row.decode == offloaded(decode, missing, read_bytes(model.shape, "q4_k_m"))


def test_the_longest_context_is_the_longest():
    machine = described("m4 pro 24gb")
    longest = longest_context(LLAMA, "q8_0", machine)
    assert fit(LLAMA, "q8_0", machine, longest).fits and not fit(LLAMA, "q8_0", machine, longest + 1024).fits
    assert longest_context(known_model("llama-3.1-405b").shape, "q8_0", machine) == 0


@pytest.mark.parametrize(
    ("machine", "model", "type_name", "context", "fits"),
    [
        ("rtx 3090", "llama-3.1-8b", "q8_0", 8192, True), ("rtx 3090", "llama-3.1-70b", "q4_k_m", 1024, False),
        ("2x rtx 3090", "llama-3.1-70b", "q4_k_m", 2048, True), ("rtx 3070", "llama-3.1-8b", "f16", 1024, False),
        ("m2 ultra 192gb", "gpt-oss-120b", "mxfp4", 8192, True),
        ("mac m2 air 16gb", "gemma-4-31b", "q3_k_m", 512, False),
    ],
)  # fmt: skip
def test_what_people_ran_fits_and_what_ran_out_of_memory_does_not(machine, model, type_name, context, fits):
    assert fit(known_model(model).shape, type_name, described(machine), context).fits is fits


def test_the_command_says_what_fits_and_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    picture = tmp_path / "fit.png"
    words = ["models", "fit", "llama-3.1-8b", "--machine", "mac m4 pro 24gb", "--context", "32k"]
    assert main([*words, "--json", "--picture", str(picture)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["type"]: row for row in result["rows"]}
    assert rows["q8_0"]["fits"] and not rows["f16"]["fits"]
    assert rows["q4_k_m"]["decode"]["low"] < rows["q4_k_m"]["decode"]["value"] < rows["q4_k_m"]["decode"]["high"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["models", "fit", "llama-3.1-405b", "--machine", "rtx 3060"]) == 3
    assert main(["models", "fit", "nothing-like-it", "--machine", "rtx 3060"]) == 2
    assert main(["models", "fit", "llama-3.1-8b", "--machine", "rtx 3060", "--context", "0"]) == 2


def test_a_draft_makes_it_faster_and_takes_memory(home, capsys):
    def row(*more):
        assert main(["models", "fit", "llama-3.1-8b", "--machine", "rtx 4090", *more, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        return next(row for row in rows if row["type"] == "q8_0")

    alone, with_draft = row(), row("--draft", "llama-3.2-1b")
    assert with_draft["decode"]["value"] > 1.2 * alone["decode"]["value"]
    assert with_draft["memory"]["total"] > alone["memory"]["total"] + 0.5 * GIB
    for words in (["llama-3.1-8b", "--draft", "qwen3-0.6b"], ["llama-3.2-1b", "--draft", "llama-3.1-8b"]):
        assert (
            main(["models", "fit", *words, "--machine", "rtx 4090"]) == 2
            and "is no draft for" in capsys.readouterr().err
        )
    assert main(["models", "fit", "--draft", "llama-3.2-1b"]) == 2


def test_every_model_of_the_catalogue_is_listed_largest_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    assert main(["models", "fit", "--machine", "rtx 4090", "--context", "8k", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    sizes = [row["parameters"] for row in rows]
    assert len(rows) > 200 and sizes == sorted(sizes, reverse=True) and all(row["fits"] for row in rows)


def test_published_numbers_are_shown_by_source_and_marked_when_old(home, monkeypatch, capsys):
    monkeypatch.setattr("settle.library.catalogue.today", lambda: datetime.date(2026, 12, 1))
    assert main(["models", "fit", "qwen3-8b", "yi-9b", "--machine", "rtx 4090", "--json"]) == 0
    shown = capsys.readouterr()
    said = " ".join(shown.err.split())
    assert (
        "qwen3-8b, published: MMLU-Redux (thinking off) 79.5; IFEval strict prompt (thinking off) 83 "
        "(self-reported, 2025-05-15, old: Qwen3 technical report, https://arxiv.org/abs/2505.09388)"
    ) in said
    assert "(thinking not said) 83.4 (independent, 2026-09-24: silybench-data" in said and "do not compare" in said
    assert "yi-9b, published" not in said and published_lines([named_shape("yi-9b")]) == []
    rows = json.loads(shown.out.splitlines()[-1])["published"]
    assert {row["model"] for row in rows} == {"qwen3-8b"} and rows[0]["date"] == "2025-05-15"
    assert [(row["kind"], row["old"]) for row in rows] == [("self-reported", True)] * 2 + [("independent", False)] * 2


def test_a_name_that_is_a_missing_file_is_said():
    with pytest.raises(UsageError):
        named_shape("./nowhere.gguf")


def test_every_further_text_at_once_costs_the_same_again():
    machine = described("rtx 4090")
    one, two, four = (1 / decode_rate(LLAMA, "q4_k_m", machine, batch=n).value for n in (1, 2, 4))
    assert two > one and four - two == pytest.approx(2 * (two - one), rel=0.02)


# --- rates against the same sums written out ---


def rate(value: float) -> Any:
    return SimpleNamespace(value=value)


@pytest.mark.parametrize(
    ("width", "inner", "used", "heads", "widest"),
    [(100, 150, 0, 1, 200), (100, 250, 0, 1, 250), (100, 250, 3, 1, 750), (100, 150, 1, 9, 288)],
)
def test_the_work_of_a_batch_is_its_widest_state_twice(
    width: int, inner: int, used: int, heads: int, widest: int
) -> None:
    shape: Any = SimpleNamespace(
        width=width, inner=inner, experts_used=used, heads=heads, head_dim=32, vocab=1000, towers=0,
        kv_bytes=lambda context, element: 7.0 * context,
    )  # fmt: skip
    machine: Any = SimpleNamespace(kind="cuda", count=2)
    found = need(shape, "f16", machine, 64, texts=3, weights=5e6)
    assert found.working + found.logits == 2 * (2 * 4.0 * 64 * widest + 4.0 * 1000 * 64)
    assert (found.weights, found.cache) == (5e6, 3 * 7.0 * 64)


def test_the_first_token_waits_for_the_prompt_and_for_itself() -> None:
    assert speed.first_token_seconds(rate(100.0), rate(4.0), 50) == pytest.approx(0.75)
    assert speed.first_token_seconds(rate(100.0), rate(4.0), 0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("devices", "node", "wanted"), [(1, 8, 0), (8, 8, 0), (16, 8, 1), (64, 8, 3), (64, 16, 3), (8, 4, 1)]
)
def test_nodes_are_doubled(devices: int, node: int, wanted: float) -> None:
    assert doublings(SimpleNamespace(node=node), SimpleNamespace(devices=devices)) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type_name", "body", "head"),
    [
        ("q4_k_m", "q4_k", "q6_k"), ("Q4_0", "q4_0", "q6_k"), ("q8_0", "q8_0", "q8_0"), ("f16", "f16", "f16"),
        ("bf16", "bf16", "bf16"), ("nothing", "q8_0", "q8_0"),
    ],
)  # fmt: skip
def test_a_type_is_priced_by_its_longest_known_name(type_name: str, body: str, head: str) -> None:
    shape: Any = SimpleNamespace(width=256, read=1000, table=300)
    found = matrices_as(shape, type_name)
    assert found.read == {body: 700.0}
    assert found.written == ({body: 1000.0} if head == body else {body: 700.0, head: 300.0})
