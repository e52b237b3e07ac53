"""Rerankers and groundedness models of the store: found, scored in a child, calibrated before they are trusted."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from settle.base.errors import EngineError
from settle.base.event_log import Events
from settle.base.events import Event
from settle.library.store import StoredModel, add_model, stamp_of
from settle.model.encoder_folder import EncoderFolder
from settle.model.source import hash_of
from settle.retrieve.answer import citation_check, evidence, groundedness
from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.citation_check import SUPPORTED, Checker
from settle.retrieve.answer.evidence import retrieve
from settle.retrieve.answer.pair_models import PairModel, pair_model
from settle.retrieve.check import groundedness_check
from settle.retrieve.check.groundedness_check import calibrated, check_groundedness, pairs_of
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search import search
from tests.encoders import tiny_encoder
from tests.retrieve.asked import TEXTS, opened

NUMBERS = ("seven", "twelve", "forty", "ninety")
PAGES = {
    f"{n}.md": f"# Room {n}\n\nThe {colour} room number {n} is painted by {NUMBERS[n % 4]} people from {town}.\n"
    for n, (colour, town) in enumerate(
        (colour, town)
        for colour in ("red", "green", "yellow", "purple", "orange", "black", "white", "brown")
        for town in ("Lyon", "Cork", "Turin", "Graz", "Porto", "Basel", "Ghent")
    )
}


class Planted:
    """A model that is right: a passage supports what it says, and answers a question whose words it has."""

    name, sha256 = "planted", "ab" * 32

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [4.0 if second in first or set(words(first)) <= set(words(second)) else -4.0 for first, second in pairs]


def stored(folder: Path, name: str, kind: str, labels: int) -> StoredModel:
    """A tiny model of random weights in the store."""
    path = tiny_encoder(folder / name, "modernbert", kind, labels)
    model = StoredModel(name, "safetensors", path, hash_of(path), f"hub:someone/{name}", "mit", stamp_of(path))
    add_model(model)
    return model


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No process of a model outlives its test."""
    opened_here: list[PairModel] = []
    with pytest.MonkeyPatch.context() as patch:
        begin = PairModel.__init__

        def remembered(self: PairModel, name: str, path: Path, sha256: str) -> None:
            begin(self, name, path, sha256)
            opened_here.append(self)

        patch.setattr(PairModel, "__init__", remembered)
        yield
    for model in opened_here:
        model.close()


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory, joined: None) -> Iterator[Collection]:
    with opened(tmp_path_factory.mktemp("pairs"), PAGES | TEXTS) as collection:
        yield collection


def test_a_model_of_the_store_scores_as_its_folder_does(home: Path, tmp_path: Path) -> None:
    assert pair_model("rerank") is None and pair_model("ground") is None
    orders = stored(tmp_path, "orders", "ForSequenceClassification", 1)
    checks = stored(tmp_path, "checks", "ForTokenClassification", 2)
    (reranker, checker) = (pair_model("rerank"), pair_model("ground"))
    assert reranker and checker and (reranker.name, checker.name) == ("orders", "checks")
    assert pair_model("rerank") is reranker
    pairs = [("rotate the key", "the key of the server"), ("of", "restart " * 400), ("the server", "naive")]
    folder = EncoderFolder.open(checks.path)
    model = folder.classifier().eval()
    sides = [[torch.tensor(folder.tokenizer.encode(pairs[n][side]).ids) for n in (0, 2)] for side in (0, 1)]
    with torch.no_grad():
        expected = model.pairs(*sides)
    found = checker.logits(pairs)
    assert [found[0], found[2]] == pytest.approx(expected.tolist(), abs=1e-4) and abs(found[1]) < 100
    assert checker.logits([]) == []
    (orders.path / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="orders scored nothing"):
        reranker.logits(pairs)


def test_a_reranker_orders_the_first_hits(docs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "which room is painted by people from Turin?"
    before = retrieve(docs, question, k=10).hits
    wanted = before[3].passage

    class Prefers(Planted):
        def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            assert all(first == question for first, _ in pairs) and len(pairs) <= evidence.DEPTH
            return [9.0 if second == wanted.embedded else -float(n) for n, (_, second) in enumerate(pairs)]

    monkeypatch.setattr(evidence, "pair_model", lambda use: Prefers() if use == "rerank" else None)
    after = retrieve(docs, question, k=10).hits
    assert [hit.passage.id for hit in after[:3]] == [wanted.id, before[0].passage.id, before[1].passage.id]
    assert {hit.passage.id for hit in after} == {hit.passage.id for hit in before}


def test_only_a_model_that_is_right_here_is_trusted(docs: Collection, home: Path, tmp_path: Path) -> None:
    supported, others = pairs_of(docs, 0)
    assert len(supported) >= 40 and len(others) >= 40
    assert all(sentence in " ".join(passage.split()) for passage, sentence in supported)
    assert not any(sentence in " ".join(passage.split()) for passage, sentence in others)
    right = calibrated(Planted(), supported, others)  # type: ignore[arg-type]
    assert right.is_trusted and right.threshold <= 0 and right.accepted[0] == right.rejected[0] == 1
    stored(tmp_path, "checks", "ForTokenClassification", 2)
    model = pair_model("ground")
    assert model is not None
    random = calibrated(model, supported, others)
    assert not random.is_trusted and random.rejected[0] < 0.8


def test_a_trusted_model_scores_the_sentences_of_answers(docs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (groundedness, groundedness_check):
        monkeypatch.setattr(module, "pair_model", lambda use: Planted() if use == "ground" else None)
    assert groundedness.uncalibrated(docs.catalogue) == "planted" and groundedness.groundedness(docs.catalogue) is None
    said: list[str] = []
    check_groundedness(docs, Events(listeners=[lambda event: said.append(_text(event))]), 0)
    assert said == [
        "planted accepts 100% of supported sentences and rejects 100% of others: it checks the sentences of answers"
    ]
    assert groundedness.uncalibrated(docs.catalogue) is None
    hits = search(docs, "the kitchen opens at noon and serves soup", 3)
    sources = [Source(n, (Piece(hit.passage, hit.occurrences[0]),)) for n, hit in enumerate(hits, 1)]
    checker = Checker(docs, sources)
    there = checker.best("The kitchen opens at noon and serves soup with bread.", 1)
    assert there.enough and there.score > 0.9
    reworded = checker.best("Soup with bread is what the kitchen serves.", 1)
    assert not reworded.enough and reworded.score < SUPPORTED / 2  # the planted model knows no other wording
    monkeypatch.setattr(Planted, "sha256", "cd" * 32)  # another model since
    assert Checker(docs, sources).best("Soup with bread is what the kitchen serves.", 1).score > reworded.score
    assert groundedness.uncalibrated(docs.catalogue) == "planted"
    assert citation_check.SUPPORTED == groundedness.SUPPORTED


def test_too_few_sentences_calibrate_nothing(tmp_path: Path, joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groundedness_check, "pair_model", lambda use: Planted())
    said: list[str] = []
    with opened(tmp_path, TEXTS) as few:
        check_groundedness(few, Events(listeners=[lambda event: said.append(_text(event))]), 0)
        assert not few.catalogue.settings.get("groundedness", dict)
    assert said == ["too few sentences to calibrate planted: it is not used"]


def _text(event: Event) -> str:
    return str(getattr(event, "text", ""))
