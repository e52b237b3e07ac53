"""Any GGUF embedder, with its file's pooling and the prefixes that it was trained with."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from settle.base.errors import DataError, FormatError, UsageError
from settle.base.event_log import Events
from settle.base.events import Say
from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats import Metadata, Weights
from settle.formats.gguf import embeds, pooling, read_gguf
from settle.infer.engine import VectorEngine
from settle.infer.token_states import TokenStates
from settle.library.facts import longest_context
from settle.library.resolve import resolve_whole
from settle.model.source import Source
from settle.retrieve.index.embedders import Embedder, Vectorizer, identity_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from settle.retrieve.index.embedders._bert import BertEncoder

MANY = 16  # texts from which on loading torch pays, which is several times faster than llama.cpp
SMALL = 100_000_000  # bytes of a model's file, up to which a few texts are embedded on numpy
_BATCH_TEXTS = 64  # of a request to llama.cpp
_SPECIAL_TOKENS = 2  # that open and close a text
_SEARCH = "Represent this sentence for searching relevant passages: "
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


class Known(NamedTuple):
    """Facts about a model that its file lacks."""

    name: str  # a pattern of its name
    query: str = ""  # prefixes of texts, from the model's card
    document: str = ""
    most: int | None = None  # tokens of the texts that it was trained on, where its file claims more


# the first that matches counts
_KNOWN = (
    Known("minilm-l12", most=128),
    Known("minilm", most=256),
    Known("nomic-embed", "search_query: ", "search_document: "),
    Known("bge-m3|bge-multilingual"),
    Known("bge-.*zh", "为这个句子生成表示以用于检索相关文章："),
    Known("bge-", _SEARCH),
    Known("mxbai-embed", _SEARCH),
    Known("arctic-embed.*v2", "query: "),
    Known("arctic-embed", _SEARCH),
    Known("e5-.*instruct|e5-mistral", _INSTRUCT + " "),
    Known("(^|-)e5-", "query: ", "passage: "),
    Known("qwen3-embedding", _INSTRUCT),
    Known("embedding-?gemma", "task: search result | query: ", "title: none | text: "),
    Known("gte-|mpnet|paraphrase|granite-embedding|jina-embeddings-v2"),
)


class Gguf(Embedder):
    """A model of the store, or a file."""

    model: str = Field("", description="a model that `settle pull` got, by name, or a .gguf file")
    query_prefix: str | None = Field(None, description="put before each question; the model's own if not given")
    document_prefix: str | None = Field(None, description="put before each passage; the model's own if not given")
    most: int = Field(
        512, gt=8, description="tokens of the longest passage; fewer where the model was trained on shorter texts"
    )

    def prepare(self, events: Events) -> None:
        source, file = self._source()
        metadata = file.metadata
        if pooling(metadata) == "none":
            note = "" if embeds(metadata) else ", which was not trained as an embedder,"
            events.emit(Say(text=f"{source.name}{note} does not say how to pool its tokens: their mean is taken"))
        if known(_names(source, metadata)) is None and None in (self.query_prefix, self.document_prefix):
            note = "is unknown: questions and passages get no prefix (see query_prefix, document_prefix)"
            events.emit(Say(text=f"{source.name} {note}"))

    def open(self) -> Vectorizer:
        source, file = self._source()
        model = known(_names(source, file.metadata)) or Known("")
        query = model.query if self.query_prefix is None else self.query_prefix
        document = model.document if self.document_prefix is None else self.document_prefix
        return _Opened(source, file, (query, document), min(self.most, model.most or self.most))

    def _source(self) -> tuple[Source, Weights]:
        if not self.model:
            fix = "--embedder.model NAME of `settle pull`, or a .gguf file"
            raise UsageError("no model is given for the gguf embedder", fix)
        source = resolve_whole(self.model).source
        fix = "choose an embedder: minilm, nomic-embed-text, bge-small-en-v1.5 …"
        if source.kind != "gguf":
            raise UsageError(f"{source.name} is no GGUF file", fix)
        file = read_gguf(source.path)
        if pooling(file.metadata) == "rank":
            raise UsageError(f"{source.name} is a reranker and gives no vectors", fix)
        return source, file


class _Opened(Vectorizer):
    """A GGUF embedder, opened.

    Many texts at once are embedded by torch, where it knows the architecture; few by llama.cpp, which loads sooner, or
    on numpy by a small model, which is there at once.
    """

    def __init__(self, source: Source, file: Weights, prefixes: tuple[str, str], most: int) -> None:
        """Open a file. prefixes: of questions and of passages; most: tokens of the longest text, special ones too."""
        self._path, self._name, self._file = source.path, source.name, file
        self._query, self._document = query, document = prefixes
        meta = file.metadata
        at = meta["general.architecture"]
        width = meta.get(f"{at}.embedding_length_out") or meta.get(f"{at}.embedding_length")
        if type(width) is not int:
            raise FormatError(f"{source.name} does not say how wide its vectors are", "it is not a whole model")
        self.width = width
        self._longest = min(most, longest_context(source.name, meta))
        self._is_bert = at == "bert" and pooling(meta) in ("mean", "cls") and self._tokenizer is not None
        self.identity = identity_of(weights=source.sha256, pooling=pooling(meta), query=query, document=document)
        self.most = self._longest - _SPECIAL_TOKENS - max(self.count([query, document]))

    def count(self, texts: Sequence[str]) -> list[int]:
        if self._tokenizer is None:
            return [self._engine.count(text) for text in texts]
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([self._document + text for text in texts])

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([self._query + text for text in texts])

    def close(self) -> None:
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.close()

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.empty((0, self.width), np.float32)
        if self._is_bert and self._tokenizer is not None:
            ids = [e.ids for e in self._tokenizer.encode_batch_fast(texts)]
            self._require_whole(map(len, ids))
            if len(texts) >= MANY or "_encoder" in self.__dict__:
                return self._encoder.embed(ids)
            return self._pooled(ids) if self._path.stat().st_size <= SMALL else self._engine.embed(ids)
        self._require_whole(number + _SPECIAL_TOKENS for number in self.count(texts))
        parts = [texts[first : first + _BATCH_TEXTS] for first in range(0, len(texts), _BATCH_TEXTS)]
        return np.concatenate([self._engine.embed(part) for part in parts])

    def _pooled(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Embed a few texts here, where a process of its own would take a second to begin."""
        states, is_token = self._states.read(ids)
        number = is_token.sum(1, keepdims=True).astype(np.float32)
        vectors: np.ndarray = states[:, 0] if pooling(self._file.metadata) == "cls" else states.sum(1) / number
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _require_whole(self, lengths: Iterable[int]) -> None:
        """Raise DataError for a text that is too long; llama.cpp's own error says less."""
        longest = max(lengths)
        if longest > self._longest:
            raise DataError(f"a text has {longest:,} tokens, and {self._name} reads {self._longest:,}", "shorten it")

    @cached_property
    def _tokenizer(self) -> "Tokenizer | None":
        """None where only llama.cpp knows the file's tokenizer."""
        try:
            return fast_tokenizer(self._file.metadata)
        except FormatError:
            return None

    @cached_property
    def _engine(self) -> VectorEngine:
        engine = VectorEngine(self._path, self._longest)
        engine.start()
        return engine

    @cached_property
    def _states(self) -> TokenStates:
        return TokenStates(self._file)

    @cached_property
    def _encoder(self) -> "BertEncoder":
        from settle.retrieve.index.embedders._bert import BertEncoder

        return BertEncoder(self._file)


def known(names: Iterable[str]) -> Known | None:
    """Return the known facts about a model with one of these names."""
    spelled = [re.sub(r"[^a-z0-9.]+", "-", name.lower()) for name in names]
    return next((model for model in _KNOWN if any(re.search(model.name, name) for name in spelled)), None)


def _names(source: Source, metadata: Metadata) -> list[str]:
    names = [str(metadata.get(f"general.{key}") or "") for key in ("name", "basename")]
    return [*names, source.name, source.path.stem]
