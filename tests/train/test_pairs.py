"""Encoders tuned on pairs of a question and a passage, by the one loop, from files to files."""

import json
import random
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.settings import resolve
from settle.data.batches import RowBatches
from settle.evaluate.pair_scores import separation
from settle.formats.gguf import read_gguf
from settle.jobs.job import find_job, start
from settle.jobs.settings import TuneSettings
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.model.encoder import encoder_of_gguf
from settle.train.objectives.contrastive import Contrastive
from settle.train.objectives.rank import Rank
from tests.bert import tiny_bert


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, and pairs whose passage answers where it has the question's two letters one after the other."""
    folder = tmp_path_factory.mktemp("pairs")
    encoder_to_gguf(tiny_bert(folder / "hf"), folder / "tiny.gguf", "tiny", "mit")
    draw = random.Random(0)
    rows = []
    for first in "abcdefghijklmn":
        for second in "opqrstuvwxyz":
            digits = draw.sample("0123456789", 4)
            others = draw.sample([letter for letter in ascii_lowercase if letter not in (first, second)], 2)
            for label, middle in ((1, [first, second]), (0, others)):
                passage = " ".join([*digits[:2], *middle, *digits[2:]])
                rows.append({"question": f"{first} {second}", "passage": passage, "label": label})
    draw.shuffle(rows)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tuned(files: Path, objective: str, **settings: object) -> dict[str, object]:
    asked = {"model": str(files / "tiny.gguf"), "inputs": [str(files / "pairs.jsonl")], "objective": objective,
             "batch_rows": 16, "threads": 1, "rows": {"held_out": 0.3}, **settings}  # fmt: skip
    events = Events()
    try:
        context = start(find_job("tune_encoder"), resolve(TuneSettings, [("asked", asked)]).value, events)
    finally:
        events.close()
    return {**json.loads((context.run.path / "result.json").read_text()), "out": context.run.out}


def test_a_reranker_learns_what_the_cosine_does_not_know(files: Path, home: Path) -> None:
    result = tuned(files, "rank", steps=60, optimizer={"name": "adamw", "lr": 3e-3})
    comparison = result["comparison"]
    assert comparison["tuned"] > 0.95 and comparison["verdict"] in ("better", "no different")
    assert result["gate"]["passed"] and Path(result["files"]["reranker"]).stat().st_size < 500_000
    assert {check["check"] for check in result["proof"]} == {"packing", "definition", "descent"}


def test_an_encoder_is_tuned_and_its_file_is_an_embedder(files: Path, home: Path) -> None:
    result = tuned(files, "contrastive", steps=25, optimizer={"name": "adamw", "lr": 1e-3})
    assert result["comparison"]["tuned"] > result["comparison"]["base"]
    before = encoder_of_gguf(read_gguf(files / "tiny.gguf")).blocks[0].up.weight
    after = encoder_of_gguf(read_gguf(Path(result["files"]["gguf"]))).blocks[0].up.weight
    assert (before - after).abs().max() > 1e-3


def test_no_question_is_on_two_sides_and_marks_are_the_only_targets(files: Path, home: Path) -> None:
    from settle.data.pairs import prepare_pairs
    from settle.data.tokenizer.fast import fast_tokenizer

    tokenizer = fast_tokenizer(read_gguf(files / "tiny.gguf").metadata)
    corpus = prepare_pairs([str(files / "pairs.jsonl")], tokenizer, 0.3)
    asked = [
        {bytes(side.document(2 * row)[:-1]) for row in range(side.num_rows)}
        for side in (corpus.train, corpus.held_out, corpus.judgement)
    ]
    assert all(asked) and not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    batch = RowBatches(corpus.train, 8, 0).at(0)
    assert Rank().count(batch) == 8 and Contrastive().count(batch) == int((batch.targets == 1).sum())
    assert set(batch.targets.tolist()) <= {-1, 0, 1} and int((batch.targets >= 0).sum()) == 8
    (files / "broken.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match=r"broken.jsonl:1 is no pair"):
        prepare_pairs([str(files / "broken.jsonl")], tokenizer, 0.3)


def test_separation_is_the_share_of_pairs_in_order() -> None:
    scores, answers = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    assert separation(scores, answers) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert np.isnan(separation(scores, np.ones(4, bool)))


def test_settings_that_do_not_go_with_an_encoder_are_refused(files: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="adamw"):
        tuned(files, "rank", optimizer="muon")
    with pytest.raises(UsageError, match="models that write"):
        tuned(files, "rank", quantize="nf4")
