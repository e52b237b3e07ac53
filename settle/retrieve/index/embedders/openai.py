"""A server that speaks OpenAI's /v1/embeddings: the API itself, vLLM, Ollama, LM Studio, `settle serve` elsewhere.

Reference: https://platform.openai.com/docs/api-reference/embeddings
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from settle.base.errors import DataError, ResourceError, SettleError, UsageError
from settle.retrieve.index.embedders import Embedder, Vectorizer, identity_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before it is tried again, doubled each time
_BUSY = (408, 425, 429, 500, 502, 503, 504, 529)  # statuses of a server that may answer later
_SHOWN = 300  # characters of what a server says
# patterns of a token, and of a character that may be two: tokenizers of several families stay below on English prose,
# and nearly always on code
_ONE, _TWO = re.compile(r"[a-zA-Z]{1,3}|[!-@\[-`{-~]|\s\s+"), re.compile(r"[^\x00-\x7f]")


class Openai(Embedder):
    """Vectors from a server. Its key stays in an environment variable: the collection keeps the variable's name."""

    url: str = Field("", description="URL of the server, with /v1: http://127.0.0.1:11434/v1")
    model: str = Field("", description="name of the model on the server")
    key_variable: str = Field("", description="environment variable that holds the server's API key, when it needs one")
    query_prefix: str = Field("", description="prefix of each question, for models trained with one")
    document_prefix: str = Field("", description="prefix of each passage, for models trained with one")
    most: int = Field(480, gt=8, description="tokens of the longest passage that the model accepts")
    tokenizer: str = Field(
        "", description="path of the model's tokenizer.json; without it the number of tokens is estimated, generously"
    )
    batch: int = Field(64, gt=0, description="texts per request")
    seconds: float = Field(120.0, gt=0, description="timeout of a request, in seconds")

    def open(self) -> Vectorizer:
        if not self.url.startswith(("http://", "https://")) or not self.model:
            fix = "--embedder.url http://HOST:PORT/v1 --embedder.model NAME"
            raise UsageError("which server is to embed, with which model?", fix)
        return _Remote(self)


class _Later(Exception):
    """The server may answer when it is asked again. what: went wrong; seconds: that it wants to be left alone."""

    def __init__(self, what: str, seconds: float = 0.0) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(what)


class _Remote(Vectorizer):
    def __init__(self, asked: Openai) -> None:
        self._asked = asked
        if asked.key_variable and not os.environ.get(asked.key_variable):
            raise UsageError(f"the environment has no {asked.key_variable}", f"export {asked.key_variable}=…")
        try:
            self.width = len(self._post(["how wide are the vectors?"])[0])
        except _Later as e:
            raise UsageError(f"{asked.url} gives no vectors: {e.what}", "start the server, and check its url") from None
        self.most = asked.most - max(self.count([asked.query_prefix, asked.document_prefix]))
        self.identity = identity_of(
            url=asked.url.rstrip("/"), model=asked.model, query=asked.query_prefix, document=asked.document_prefix
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        if self._tokenizer is None:
            return [_guessed(text) for text in texts]
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([self._asked.document_prefix + text for text in texts])

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([self._asked.query_prefix + text for text in texts])

    @cached_property
    def _tokenizer(self) -> "Tokenizer | None":
        if not self._asked.tokenizer:
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(self._asked.tokenizer)
        except Exception as e:  # noqa: BLE001  the library raises nothing narrower
            what = f"{self._asked.tokenizer} is no tokenizer: {e}"
            raise UsageError(what, "give the model's tokenizer.json") from None

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        out = np.empty((len(texts), self.width), np.float32)
        for first in range(0, len(texts), self._asked.batch):
            some = texts[first : first + self._asked.batch]
            found = self._patiently(some)
            if found.shape[1] != self.width:
                raise DataError(
                    f"{self._asked.url} gives vectors of {found.shape[1]} numbers now, it was {self.width}",
                    "its model was exchanged: `settle index NAME --anew`",
                )
            out[first : first + len(some)] = found
        return out

    def _patiently(self, texts: Sequence[str]) -> np.ndarray:
        """Asked again while the server is busy or away. Raises ResourceError in the end."""
        what, wait = "", FIRST_WAIT
        for tries_left in reversed(range(TRIES)):
            try:
                return self._post(texts)
            except _Later as e:
                what = e.what
                if tries_left:
                    time.sleep(min(max(wait, e.seconds), LONGEST_WAIT))
                wait *= 2
        raise ResourceError(
            f"{self._asked.url} gave no vectors in {TRIES} tries: {what}", "see to the server, then again"
        )

    def _post(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (len(texts), width), each of length 1. Raises _Later, or SettleError when asking again is no use."""
        url = f"{self._asked.url.rstrip('/')}/embeddings"
        body = json.dumps({"model": self._asked.model, "input": list(texts)}).encode()
        headers = {"Content-Type": "application/json"}
        if self._asked.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[self._asked.key_variable]}"
        try:
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request, timeout=self._asked.seconds) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as e:
            with e:
                raise self._refused(e, _said(e)) from None
        except urllib.error.URLError as e:
            raise _Later(str(getattr(e.reason, "strerror", None) or e.reason)) from None
        except (OSError, http.client.HTTPException) as e:
            raise _Later(str(e) or type(e).__name__) from None
        except ValueError:
            raise self._strange("its answer is no JSON") from None
        return self._read(answer, len(texts))

    def _refused(self, error: urllib.error.HTTPError, said: str) -> SettleError | _Later:
        if error.code in _BUSY:
            after = error.headers.get("Retry-After", "")
            return _Later(f"{error.code} {said}", float(after) if after.isdigit() else 0.0)
        where, what = self._asked.url, f"{error.code} {said}"
        if error.code in (401, 403):
            key = self._asked.key_variable
            wrong = f"does not take the key in {key}" if key else "wants a key"
            return UsageError(f"{where} {wrong}: {what}", "--embedder.key_variable NAME of the variable that holds it")
        if error.code == 404:
            return UsageError(
                f"{where} has no model {self._asked.model!r}, or makes no embeddings: {what}",
                "check --embedder.model and --embedder.url, which mostly ends in /v1",
            )
        return DataError(f"{where} refused the texts: {what}", "a smaller --embedder.most or --embedder.batch may help")

    def _read(self, answer: Any, number: int) -> np.ndarray:
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (KeyError, TypeError, ValueError):
            raise self._strange("its answer holds no embeddings") from None
        if vectors.ndim != 2 or len(vectors) != number:
            raise self._strange(f"it gave {len(vectors)} vectors for {number} texts")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise self._strange("some of its vectors point nowhere")
        unit: np.ndarray = vectors / lengths
        return unit

    def _strange(self, what: str) -> DataError:
        return DataError(f"{self._asked.url} does not answer as OpenAI's embeddings do: {what}", "check the url")


def _said(error: urllib.error.HTTPError) -> str:
    """What a server says beside a status."""
    raw = error.read(1 << 16).decode("utf-8", "replace")
    try:
        told = json.loads(raw)
        told = told.get("error", told)
        raw = told if isinstance(told, str) else str(told.get("message") or told)
    except (ValueError, AttributeError):
        pass
    return " ".join(raw.split())[:_SHOWN]


def _guessed(text: str) -> int:
    """Tokens of a text, rather too many."""
    return len(_ONE.findall(text)) + 2 * len(_TWO.findall(text))
