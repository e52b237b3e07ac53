"""The texts that a model is measured on when it is made smaller, its vocabulary, its card and its student's shape."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from settle.base.errors import DataError, ResourceError, UsageError
from settle.base.statistics import Interval
from settle.evaluate.divergence import Divergence, TextLoss
from settle.evaluate.footprint import Footprint, Measured
from settle.jobs.settings import ShrinkOptions
from settle.shrink import session
from settle.shrink.calibration import (
    CALIBRATION_TOKENS,
    PASSAGE,
    CalibrationData,
    _halves,
    _named,
    _passages,
    _spread,
    _too_few,
    calibration_windows,
    familiarity,
)
from settle.shrink.candidates import ShrinkCandidate
from settle.shrink.card import CardFacts, card
from settle.shrink.prunable_model import in_layer, layer_of
from settle.shrink.pruners.vocabulary import counted, cut_metadata, scripts_of
from settle.shrink.session import require_room


def test_a_text_is_cut_between_paragraphs_lines_or_words() -> None:
    def cut(mark: str, at: int) -> list[str]:
        return list(_passages("a" * at + mark + "b" * (2 * PASSAGE - at - len(mark))))

    for mark in ("\n\n", "\n", " "):
        assert [len(part) for part in cut(mark, PASSAGE - 10)][0] == PASSAGE - 10
        assert len(cut(mark, PASSAGE // 2 - 10)[0]) == PASSAGE  # too early to cut there
        assert len(cut(mark, PASSAGE // 2)[0]) == PASSAGE // 2
    assert "".join(cut(" ", 2500)).count("b") == 2 * PASSAGE - 2501
    both = "a" * 1600 + "\n\n" + "a" * 500 + "\n" + "a" * 2000
    assert len(list(_passages(both))[0]) == 1600  # between paragraphs rather than lines
    assert list(_passages("x" * PASSAGE)) == ["x" * PASSAGE] and list(_passages("")) == []


def test_every_other_passage_is_judged() -> None:
    assert _halves(["a", "b", "c"]) == (["a", "c"], ["b"]) and _halves(["abcd"]) == (["ab"], ["cd"])


def test_inputs_have_a_short_name() -> None:
    assert _named(["x/a", "b", "c"]) == "a, b, c" and _named(["a", "b", "c", "d"]) == "a, b, c, …"


class Store:
    def __init__(self, *lengths: int) -> None:
        self.lengths, self.num_documents, self.num_tokens = lengths, len(lengths), sum(lengths)

    def document(self, at: int) -> np.ndarray:
        return np.full(self.lengths[at], at)


def test_documents_are_spread_over_a_store() -> None:
    def chosen(store: Store, most: int) -> list[int]:
        return [int(document[0]) for document in _spread(cast(Any, store), most)]

    assert chosen(Store(*[10] * 12), 40) == [0, 3, 6, 9] and chosen(Store(10, 1, 10), 99) == [0, 2]
    assert chosen(Store(10, 2), 99) == [0, 1]


def test_too_little_to_calibrate_on_is_said() -> None:
    half = CALIBRATION_TOKENS // 2
    assert _too_few([np.zeros(half - 1), np.zeros(1)]) == ()
    (said,) = _too_few([np.zeros(half - 1)])
    assert said.startswith("your text is short to calibrate on: 4,095 tokens, where 4,096 or more")


def data(**more: Any) -> CalibrationData:
    windows = SimpleNamespace(ids=[[1, 2], [3]])
    return CalibrationData("x", [np.array([5])], cast(Any, windows), [], cast(Any, windows), [], [], 9, **more)


def test_a_fingerprint_is_of_all_ids_and_where_windows_end() -> None:
    same = data().fingerprint
    assert len(same) == 16 and data(warnings=("w",)).fingerprint == same
    for change in (
        {"calibration": [np.array([6])]}, {"selection": SimpleNamespace(ids=[[1], [2, 3]])},
        {"held_out": SimpleNamespace(ids=[[1, 2, 3]])}, {"calibration": [np.array([5]), np.array([], int)]},
    ):  # fmt: skip
        assert replace(data(), **cast(Any, change)).fingerprint != same


class Words:
    """A tokenizer of one id a letter; opened by 99."""

    bos_id, eos_id, add_bos = 99, 98, True
    tokens = ["x"] * 100

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        return np.array([ord(c) - 97 for c in text if "a" <= c <= "z"], int)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]


def words(**changes: Any) -> Any:
    tokenizer = Words()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_windows_are_taken_evenly_and_opened() -> None:
    found = calibration_windows(words(), ["a" * 30, "b" * 12], num_tokens=1000, length=11)
    assert [len(window) for window in found.windows] == [11, 11, 11, 11] and found.found == 42
    assert all(window[0] == 99 for window in found.windows)  # the last two ids are too few for a window
    assert found.windows[3].tolist() == [99] + [1] * 10 and found.num_tokens == 44
    kept = calibration_windows(words(add_bos=False), ["a" * 45], num_tokens=1000, length=10)
    assert [len(window) for window in kept.windows] == [10, 10, 10, 10, 5]
    letters = ["".join(chr(97 + i) * 10 for i in range(26))]
    few = calibration_windows(words(add_bos=False), letters, num_tokens=40, length=10)
    assert [int(window[0]) for window in few.windows] == [0, 8, 17, 25]
    with pytest.raises(DataError, match="the calibration text is empty"):
        calibration_windows(words(), ["1 2 3"])


def test_a_short_or_unlike_calibration_text_is_said() -> None:
    short = calibration_windows(words(), ["a" * 99], num_tokens=100, length=10)
    assert "it is" not in short.warnings[0] and "short: 99 tokens, where 100 or more" in short.warnings[0]
    assert not calibration_windows(words(), ["a" * 100], num_tokens=100, length=10).warnings
    unlike = calibration_windows(words(), ["a" * 400], num_tokens=100, length=10, data=["b" * 400])
    assert unlike.warnings[0].startswith("the calibration text is unlike your data: it holds 0% of the tokens")
    assert "another part of your data of the same length holds 100%" in unlike.warnings[0]
    assert not calibration_windows(words(), ["ab" * 200], num_tokens=100, length=10, data=["b" * 400]).warnings


def test_familiarity_is_of_the_second_half() -> None:
    ids = np.array([0] * 150 + [1] * 75 + [0] * 75)
    assert familiarity(ids, np.array([1] * 200)) == (0.5, 0.5)
    assert familiarity(ids, np.array([0, 1] * 100)) == (1.0, 0.5)
    late = np.array([7] * 500 + [1] * 150)
    assert familiarity(ids, late)[0] == 0.5  # found wherever in the other text it is
    assert familiarity(ids[:199], ids) == (0.0, 0.0) and familiarity(ids, ids[:99]) == (0.0, 0.0)


def test_ids_are_counted_with_every_tenth_piece_apart() -> None:
    most, tenth = counted(words(), ["a" * 9 + "b", "c" * 3], piece=1)
    assert (most[0], most[1], most[2]) == (9, 0, 3) and (tenth[0], tenth[1], tenth.sum()) == (0, 1, 1)
    assert counted(words(), ["ab" * 10], piece=4)[0].sum() == 20 and len(most) == 100


def test_scripts_are_those_that_more_than_a_few_letters_have() -> None:
    common = scripts_of(["a" * 1999 + "б", "1.!"])
    assert common("z") and not common("ж") and not common("中")
    assert scripts_of(["a" * 999 + "б"])("ж")


METADATA = {
    "general.name": "m",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "c", "abc"],
    "tokenizer.ggml.scores": [0.0, 0.1, 0.2, 0.3, 0.4],
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eog_token_ids": [4, 0, 3],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.other": [1, 2],
}


def test_a_cut_vocabulary_is_renumbered() -> None:
    assert cut_metadata(METADATA, [0, 1, 2, 3]) == {
        "tokenizer.ggml.tokens": ["a", "b", "ab", "c"], "tokenizer.ggml.scores": [0.0, 0.1, 0.2, 0.3],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eog_token_ids": [0, 3],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.other": [1, 2],
    }  # fmt: skip
    turned = cut_metadata(METADATA, [4, 3, 2])
    assert turned["tokenizer.ggml.eos_token_id"] == 0 and turned["tokenizer.ggml.bos_token_id"] == 1
    assert turned["tokenizer.ggml.scores"] == [0.4, 0.3, 0.2] and turned["tokenizer.ggml.merges"] == ["ab c"]


def test_layers_of_parameters() -> None:
    assert layer_of("model.layers.12.mlp.up_proj.weight") == 12 and layer_of("lm_head.weight") is None
    assert in_layer(3, "mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"


def test_a_disk_without_room_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    require_room(2_000_000, tmp_path)
    with pytest.raises(ResourceError, match="no room for this work: 2.0 MB are needed and 2.0 MB are free"):
        require_room(2_000_001, tmp_path)


@pytest.mark.parametrize(
    ("asked", "goal", "amount", "mix"),
    [
        ({"to": "400MB"}, "size", 400e6, ""),
        ({"to": "q4_k_m"}, "mix", 0.0, "Q4_K_M"),
        ({"lose": "1%"}, "loss", 0.01, ""),
        ({"speed": 40.0}, "speed", 40.0, ""),
        ({"plan": True}, "plan", 0.0, ""),
        ({"vocabulary": True}, "unchanged", 0.0, ""),
        ({"vocabulary": True, "to": "1GB"}, "size", 1e9, ""),
    ],
)
def test_one_budget_decides(asked: dict[str, Any], goal: str, amount: float, mix: str) -> None:
    found = ShrinkOptions.model_validate({"model": "m", **asked}).budget()
    assert (found.goal, found.amount, found.mix) == (goal, amount, mix)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "and none were given"),
        ({"to": "1MB", "plan": True}, "--to, --plan were"),
        ({"to": "Q4_X"}, "no type 'Q4_X'"),
    ],
)
def test_no_budget_and_two_are_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ShrinkOptions.model_validate({"model": "m", **asked}).budget()


def shown(**more: Any) -> str:
    ends = Interval(0.02, 0.01, 0.03)
    d = Divergence(3, 1200, 4800, ends, 0.5, 0.7, Interval(0.9, 0.875, 0.925), 1.02, 1.0, ends)
    median = Measured(7.5, 7.0, 8.0)
    footprint = Footprint(1, median, 77_000_000, median, median, 128, 3)
    reference = ShrinkCandidate("F16", {}, 270_000_000, footprint=footprint)
    chosen = ShrinkCandidate("auto", {"a": "Q4_K", "b": "Q8_0", "c": "Q4_K"}, 90_000_000, None, 0.021, d, footprint)
    source = SimpleNamespace(sha256="ab" * 32)
    whole = SimpleNamespace(name="smol", license="mit", source=source)
    session: Any = SimpleNamespace(
        whole=whole, model=SimpleNamespace(data=SimpleNamespace(name="notes")), cut=more.pop("cut", None)
    )
    gate = {"texts_equal": 210, "prompts_equal": 3, "greedy_tokens_equal": 143, "greedy_tokens": 144}
    return card(CardFacts("small", "it is the best of 90 MB", reference, chosen, gate, **more), session)


def test_every_line_of_a_card() -> None:
    """The whole of a card, as somebody read it."""
    loss = TextLoss(5, 4800, Interval(1.5, 1.25, 1.75), Interval(1.25, 1.0, 1.5), Interval(0.2, 0.1, 0.3))
    text = shown(cut=(49152, 9000), text_loss=loss, headline="no different")
    assert text == (Path(__file__).parent / "card.txt").read_text(encoding="utf-8")
    assert "Vocabulary" not in shown() and "On the task" not in shown() and "Vocabulary" not in shown(cut=(5, 4))
