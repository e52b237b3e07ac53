"""The peers of `retrieval.py`, each as its documentation shows it, over one folder of documents.

    PEERS/bin/python bench/retrieval_peers.py DOCUMENTS QUESTIONS OUT --systems SYSTEM… --model FOLDER --cache FILE

SYSTEM is one of the functions below; QUESTIONS a file of JSON lines with `question`; OUT a folder, where SYSTEM.jsonl
gets a line for each: the passages that were found, the best first, as [path below DOCUMENTS, text]. All have the same
embedder: the weights in FOLDER, read by sentence-transformers, 256 tokens, mean pooling, length 1. What a text was
embedded to is kept in the cache, by its hash: embedding it again would give the same. PEERS has chromadb,
llama-index-core, llama-index-retrievers-bm25, haystack-ai, trafilatura with lxml_html_clean (for its web pages) and
sentence-transformers.
"""

import argparse
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np

FOUND = 50  # passages asked for
LONGEST = 256  # tokens that the embedder reads of a text
SPLITS = (200, 150, 120, 100, 80, 60)  # words of Haystack's pieces
Search = Callable[[str], list[tuple[str, str]]]


class Embedder:
    """float32 vectors of length 1, each text embedded once."""

    def __init__(self, model: Path, cache: Path) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
        transformer = Transformer(str(model), max_seq_length=LONGEST)
        modules = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
        self.model = SentenceTransformer(modules=modules, device="cpu")
        self.db = sqlite3.connect(cache, isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS vectors (hash BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def __call__(self, texts: list[str]) -> np.ndarray:
        keys = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in texts]
        found = {}
        for key in dict.fromkeys(keys):
            row = self.db.execute("SELECT vector FROM vectors WHERE hash = ?", (key,)).fetchone()
            if row:
                found[key] = np.frombuffer(row[0], np.float32)
        missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in found}.items())
        missing.sort(key=lambda item: len(item[1]))
        for first in range(0, len(missing), 256):
            some = missing[first : first + 256]
            vectors = self.model.encode([text for _, text in some], batch_size=16, show_progress_bar=False)
            rows = [(key, vector.tobytes()) for (key, _), vector in zip(some, vectors, strict=True)]
            self.db.execute("BEGIN")
            self.db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
            self.db.execute("COMMIT")
            found |= {key: vector for (key, _), vector in zip(some, vectors, strict=True)}
        return np.stack([found[key] for key in keys])


def files(documents: Path) -> list[Path]:
    return sorted(path for path in documents.rglob("*") if path.is_file())


def _plain(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".html":
        return text
    from bs4 import BeautifulSoup

    return BeautifulSoup(text, "html.parser").get_text()


def _chroma(embed: Embedder, texts: list[str], paths: list[str]) -> Search:
    import chromadb
    from chromadb.config import Settings

    class Function(chromadb.EmbeddingFunction):
        def __init__(self) -> None: ...

        def __call__(self, input: list[str]) -> list[np.ndarray]:
            return list(embed(list(input)))

    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    collection = client.create_collection(f"gold-{uuid4()}", embedding_function=Function())
    for first in range(0, len(texts), 1000):
        ids = [str(i) for i in range(first, min(first + 1000, len(texts)))]
        metadatas = [{"path": path} for path in paths[first : first + 1000]]
        collection.add(ids=ids, documents=texts[first : first + 1000], metadatas=metadatas)

    def search(question: str) -> list[tuple[str, str]]:
        found = collection.query(query_texts=[question], n_results=FOUND)
        return [(m["path"], text) for m, text in zip(found["metadatas"][0], found["documents"][0], strict=True)]

    return search


def chroma_whole(documents: Path, embed: Embedder) -> Search:
    """Index each document as one record, as in Chroma's getting started."""
    paths = files(documents)
    return _chroma(embed, [_plain(p) for p in paths], [str(p.relative_to(documents)) for p in paths])


def chroma(documents: Path, embed: Embedder) -> Search:
    """Split as its guide "Chunking" shows; web pages by BeautifulSoup, as it has no readers."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=500, chunk_overlap=50, separators=["\n\n", "\n", ". ", " "])
    pieces = [(text, path) for path in files(documents) for text in splitter.split_text(_plain(path))]
    return _chroma(embed, [text for text, _ in pieces], [str(path.relative_to(documents)) for _, path in pieces])


def _llamaindex(documents: Path, embed: Embedder):
    """Index by SimpleDirectoryReader, SentenceSplitter and VectorStoreIndex with defaults, in pieces that fit.

    Pieces have at most the embedder's own length, counted by its tokenizer: the default of 1,024 tokens would be cut at
    the first 256 of each. Web pages are read by its HTMLTagReader. Names say nothing here, so the path is not embedded
    with the text.
    """
    from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.readers.file import HTMLTagReader

    class Embedding(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return embed([text])[0].tolist()

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return embed(list(texts)).tolist()

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    reader = SimpleDirectoryReader(str(documents), recursive=True, file_extractor={".html": HTMLTagReader()})
    embedding = Embedding(embed_batch_size=1024)
    tokenizer = embed.model.tokenizer
    splitter = SentenceSplitter(chunk_size=LONGEST - 2, chunk_overlap=20, tokenizer=tokenizer.tokenize)
    loaded = reader.load_data()
    for document in loaded:
        document.excluded_embed_metadata_keys.append("file_path")
    return VectorStoreIndex.from_documents(loaded, transformations=[splitter], embed_model=embedding)


def _retrieved(retriever, documents: Path) -> Search:
    def search(question: str) -> list[tuple[str, str]]:
        found = retriever.retrieve(question)
        return [(str(Path(n.metadata["file_path"]).relative_to(documents)), n.get_content()) for n in found]

    return search


def llamaindex(documents: Path, embed: Embedder) -> Search:
    """Return the index's own retriever."""
    return _retrieved(_llamaindex(documents, embed).as_retriever(similarity_top_k=FOUND), documents)


def llamaindex_hybrid(documents: Path, embed: Embedder) -> Search:
    """BM25Retriever and the index's retriever joined by reciprocal rank, as its guide "Reciprocal Rerank Fusion"."""
    from llama_index.core.llms import MockLLM
    from llama_index.core.retrievers import QueryFusionRetriever
    from llama_index.retrievers.bm25 import BM25Retriever

    index = _llamaindex(documents, embed)
    nodes = list(index.docstore.docs.values())
    lexical = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=min(FOUND, len(nodes)))
    both = [index.as_retriever(similarity_top_k=FOUND), lexical]
    fused = QueryFusionRetriever(
        both, llm=MockLLM(), num_queries=1, similarity_top_k=FOUND, mode="reciprocal_rerank", use_async=False
    )
    return _retrieved(fused, documents)


def _haystack(documents: Path, embed: Embedder):
    """Index in an InMemoryDocumentStore, by Haystack's converters and DocumentSplitter.

    Of its default of 200 words or fewer, the most for which 19 of 20 pieces are no longer than the embedder reads.
    """
    from haystack.components.converters import HTMLToDocument, TextFileToDocument
    from haystack.components.preprocessors import DocumentSplitter
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    converted = []
    for path in files(documents):
        converter = HTMLToDocument() if path.suffix == ".html" else TextFileToDocument()
        meta = {"path": str(path.relative_to(documents))}
        converted += converter.run(sources=[str(path)], meta=meta)["documents"]
    for words in SPLITS:
        splitter = DocumentSplitter(split_length=words)
        splitter.warm_up()
        split = splitter.run(documents=converted)["documents"]
        lengths = [len(embed.model.tokenizer.tokenize(document.content)) for document in split]
        if np.quantile(lengths, 0.95) <= LONGEST - 2:
            break
    vectors = embed([document.content for document in split])
    store = InMemoryDocumentStore()
    store.write_documents([replace(d, embedding=v.tolist()) for d, v in zip(split, vectors, strict=True)])
    return store


def haystack(documents: Path, embed: Embedder) -> Search:
    """InMemoryEmbeddingRetriever."""
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever

    retriever = InMemoryEmbeddingRetriever(_haystack(documents, embed), top_k=FOUND)

    def search(question: str) -> list[tuple[str, str]]:
        found = retriever.run(query_embedding=embed([question])[0].tolist())["documents"]
        return [(document.meta["path"], document.content) for document in found]

    return search


def haystack_hybrid(documents: Path, embed: Embedder) -> Search:
    """BM25 and embedding retriever joined by reciprocal rank fusion: its tutorial 33 without the ranker's weights."""
    from haystack.components.joiners import DocumentJoiner
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever

    store = _haystack(documents, embed)
    dense, lexical = InMemoryEmbeddingRetriever(store, top_k=FOUND), InMemoryBM25Retriever(store, top_k=FOUND)
    joiner = DocumentJoiner(join_mode="reciprocal_rank_fusion", top_k=FOUND)

    def search(question: str) -> list[tuple[str, str]]:
        near = dense.run(query_embedding=embed([question])[0].tolist())["documents"]
        found = joiner.run(documents=[lexical.run(query=question)["documents"], near])["documents"]
        return [(document.meta["path"], document.content) for document in found]

    return search


SYSTEMS = {f.__name__: f for f in (chroma, chroma_whole, llamaindex, llamaindex_hybrid, haystack, haystack_hybrid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), required=True)
    for name in ("documents", "questions", "out"):
        parser.add_argument(name, type=Path)
    for name in ("--model", "--cache"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    embed = Embedder(args.model, args.cache)
    questions = [json.loads(line)["question"] for line in args.questions.read_text(encoding="utf-8").splitlines()]
    for system in args.systems:
        search = SYSTEMS[system](args.documents, embed)
        found = (json.dumps(search(question)) + "\n" for question in questions)
        (args.out / f"{system}.jsonl").write_text("".join(found), encoding="utf-8")


if __name__ == "__main__":
    main()
