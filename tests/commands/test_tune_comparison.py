"""A tuned model is compared with its base on the held-out rows, and on none that it learned from."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settle.data.corpus import corpus_folder
from settle.data.rows.prepare import RowCorpus
from settle.jobs import tune


class Compared(Exception):
    """Carries the examples that were to be compared."""


@contextlib.contextmanager
def nothing(*args: object) -> Iterator[tuple[Any, Any]]:
    yield SimpleNamespace(name="tuned"), SimpleNamespace(name="base")


def test_the_rows_that_judge_were_not_learned_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("train", "selection", "held_out"):
        folder = corpus_folder("f") / side
        folder.mkdir(parents=True)
        lines = [json.dumps({"kind": "text", "text": f"{side} {i}"}) for i in range(3)]
        (folder / "examples.jsonl").write_text("\n".join(lines))
    corpus: Any = SimpleNamespace(fingerprint="f", template=None, ledger={"rows": {}})
    corpus.examples = lambda *sides: RowCorpus.examples(corpus, *sides)

    def compare_models(ours: object, theirs: object, examples: Iterator[object], *rest: object) -> None:
        raise Compared([str(example) for example in examples])

    for name, instead in {
        "as_gguf": nothing, "both_in_llamacpp": nothing, "resolve": str, "readers": nothing,
        "transformers_name": str, "compare_models": compare_models, "CompareOptions": dict,
    }.items():  # fmt: skip
        monkeypatch.setattr(tune, name, instead)
    context: Any = SimpleNamespace(
        budget=None,
        figures={}, is_usable=True, corpus=corpus, events=None, seconds_to_compare=None, tokenizer=None,
        base=SimpleNamespace(name="b"), tuning=SimpleNamespace(base_name="b", base_sha256="0"),
        run=SimpleNamespace(path=Path("r"), out=Path("o")),
        settings=SimpleNamespace(compare=True, score="exact", compare_rows=9),
    )  # fmt: skip
    with pytest.raises(Compared) as compared:
        tune.compare(context)
    (examples,) = compared.value.args
    assert len(examples) == 3 and all("held_out" in example for example in examples)
