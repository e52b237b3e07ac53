"""A collection keeps to the embedder that it was made with."""

import shutil

import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.library.pull.bert import bert_to_gguf
from settle.retrieve.index.chunkers.structure import Structure
from settle.retrieve.index.collection import Collection, IndexParts, create
from settle.retrieve.index.embedders.gguf import Gguf
from settle.retrieve.index.stores.lancedb import Lancedb
from settle.retrieve.index.update_index import update
from settle.retrieve.search import search
from tests.bert import tiny_bert


def test_vectors_of_two_embedders_are_never_compared(home, folder, tmp_path):
    (folder / "a.md").write_text("# Keys\n\nRotate the key, and restart the server.\n")
    files = [bert_to_gguf(tiny_bert(tmp_path / f"b{i}", seed=i), tmp_path / f"b{i}.gguf", "bert", "") for i in (0, 1)]
    embedder = Gguf(model=str(files[0]))
    with create("docs") as docs:
        docs.decide(IndexParts(embedder, Lancedb(), Structure()))
        docs.follow([folder])
        update(docs, Events())
        for other in (Gguf(model=str(files[0]), query_prefix="query: "), Gguf(model=str(files[1]))):
            with pytest.raises(UsageError, match="is made with gguf"):
                docs.decide(IndexParts(other, Lancedb(), Structure()))
    shutil.copyfile(files[1], files[0])
    with Collection("docs") as docs, pytest.raises(DataError, match="another version of gguf"):
        search(docs, "the key")
