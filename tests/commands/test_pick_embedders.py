"""`settle pick` of embedders, on questions and passages."""

import json

import numpy as np
import pytest

from settle.cli import main
from settle.jobs.pick import candidates as candidates_module
from settle.jobs.pick.exam import read_search
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.library.resolve import resolve_gguf
from settle.retrieve.index.embedders.gguf import Gguf
from tests.bert import tiny_bert

WORDS = ("rotate", "the", "key", "of", "server", "restart", "query", "cafe", "naive", "how", "alpha", "beta", "delta")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two embedders, and for each question the passage that the first one finds nearest."""
    folder = tmp_path_factory.mktemp("embedders")
    for name, seed in (("best", 0), ("other", 1)):
        encoder_to_gguf(tiny_bert(folder / f"{name}.hf", seed=seed), folder / f"{name}.gguf", name, "mit")
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 6)) for _ in range(80)]
    questions, passages = texts[:30], texts[30:]
    with Gguf(model=str(folder / "best.gguf")).open() as opened:
        nearest = (opened.queries(questions) @ opened.documents(passages).T).argmax(1)
    asked = enumerate(zip(questions, nearest, strict=True))
    rows = [{"question": question, "passage": passages[at], "group": str(i)} for i, (question, at) in asked]
    rows += [{"question": questions[0], "passage": passage, "label": 0, "group": "0"} for passage in passages]
    rows = [{"label": 1} | row for row in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No models of other programs."""
    monkeypatch.setattr(candidates_module, "neighbours", lambda: ())


def test_the_embedder_that_finds_the_right_passages_is_picked(files, home, capsys):
    both = ("--models", str(files / "other.gguf"), "--models", str(files / "best.gguf"))
    code = main(["pick", "embeddings for search", "--prompts", str(files / "pairs.jsonl"), *both, "--json"])
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (code, result["chosen"], result["verdict"]) == (0, "best", "better"), err
    assert "30 questions" in err and "50 passages, scored by reciprocal rank" in err
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name["best"]["score"] == pytest.approx(1.0) and by_name["other"]["score"] < 0.8
    assert by_name["best"]["measured"]["speed"]["median"] > 0 and by_name["best"]["measured"]["peak_bytes"] > 1e6
    assert set(by_name["best"]["predicted"]) == {"memory"}
    assert (home / "picks" / "embeddings_for_search" / "pareto.png").is_file() or (home / "picks").is_dir()


def test_ranks_count_ties_as_half_and_long_passages_by_their_nearest_part(files, home, tmp_path):
    rows = [
        {"question": "rotate the key", "passage": "rotate the key"},
        {"question": "restart server", "passage": "cafe naive " * 60 + "restart server"},
        {"question": "query", "passage": "naive how of"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    search = read_search(tmp_path / "pairs.jsonl", 60)
    ranks = search.scores(resolve_gguf(str(files / "best.gguf")), 512)
    assert ranks[0] == pytest.approx(1.0) and all(0.3 < rank <= 1 for rank in ranks)
    with Gguf(model=str(files / "best.gguf")).open() as opened:
        parts = list(opened.parts(rows[1]["passage"]))
        near = (opened.documents(parts) @ opened.queries(["restart server"])[0]).max()
        others = opened.documents([rows[0]["passage"], rows[2]["passage"]]) @ opened.queries(["restart server"])[0]
    assert len(parts) > 1 and ranks[1] == pytest.approx(1 / (1 + sum(others > near)))


def test_questions_of_one_passage_count_as_one(tmp_path):
    rows = [{"question": f"what {i}", "passage": p} for i, p in enumerate(["alpha beta", "alpha beta", "gamma delta"])]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = read_search(tmp_path / "pairs.jsonl", 60).families
    assert first == second != third


@pytest.mark.parametrize(
    ("rows", "args", "says"),
    [
        ([{"question": "a", "passage": "b"}], (), "two different passages"),
        ([{"question": "a", "passage": p, "label": 0} for p in "bc"], (), "0 questions"),
        ([{"colour": "red"}], (), "is no pair"),
        ([{"question": "a", "passage": "b"}, {"question": "c", "passage": "d"}], ("--score", "exact"), "leave out"),
        ([{"question": "a", "passage": "b"}, {"question": "c", "passage": "d"}], ("--context", "4k"), "trained for"),
        ([{"question": "a", "passage": "b"}, {"question": "c", "passage": "d"}], ("--models", "no.gguf"), "no.gguf"),
    ],
)  # fmt: skip
def test_what_embedders_cannot_be_picked_by(rows, args, says, files, home, capsys, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["pick", "embeddings", "--prompts", str(tmp_path / "pairs.jsonl"), "--models", str(files / "best.gguf")]
    assert main([*given, *args]) in (1, 2)
    assert says in capsys.readouterr().err
