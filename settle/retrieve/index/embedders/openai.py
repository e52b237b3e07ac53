"""A server that speaks OpenAI's /v1/embeddings: the API itself, vLLM, Ollama, LM Studio, `settle serve` elsewhere.

Reference: https://platform.openai.com/docs/api-reference/embeddings
"""

import json
import os
import re
import time
import urllib.parse
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from pydantic import Field

from settle.audit.session import declare
from settle.base.errors import DataError, ResourceError, SettleError, UsageError
from settle.base.files import parse_json
from settle.machine.web_request import WEB_ERRORS, open_response, reason
from settle.retrieve.index.embedders import Embedder, Vectorizer, identity_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a retry, doubled each time
_BUSY = (408, 425, 429, 500, 502, 503, 504, 529)  # statuses of a server that may answer later
_SHOWN = 300  # characters of what a server says
# Patterns of a token, and of a character that may be two: tokenizers of several families give fewer on English prose,
# and nearly always on code.
_TOKEN, _TWO_TOKENS = re.compile(r"[a-zA-Z]{1,3}|[!-@\[-`{-~]|\s\s+"), re.compile(r"[^\x00-\x7f]")


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
            raise UsageError("no server and model are given for the openai embedder", fix)
        declare(urllib.parse.urlsplit(self.url).hostname or "", "the server of the embedder")
        return _Remote(self)


class _Later(Exception):
    """The server may answer a later request. what: what went wrong; seconds: how long it asks to wait."""

    def __init__(self, what: str, seconds: float = 0.0) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(what)


class _Remote(Vectorizer):
    def __init__(self, settings: Openai) -> None:
        self._settings = settings
        if settings.key_variable and not os.environ.get(settings.key_variable):
            raise UsageError(f"the environment has no {settings.key_variable}", f"export {settings.key_variable}=…")
        try:
            self.width = len(self._post(["how wide are the vectors?"])[0])
        except _Later as e:
            what = f"{settings.url} gives no vectors: {e.what}"
            raise UsageError(what, "start the server, and check its url") from None
        self.most = settings.most - max(self.count([settings.query_prefix, settings.document_prefix]))
        self.identity = identity_of(
            url=settings.url.rstrip("/"),
            model=settings.model,
            query=settings.query_prefix,
            document=settings.document_prefix,
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        if self._tokenizer is None:
            return [_estimate_tokens(text) for text in texts]
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([self._settings.document_prefix + text for text in texts])

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([self._settings.query_prefix + text for text in texts])

    @cached_property
    def _tokenizer(self) -> "Tokenizer | None":
        if not self._settings.tokenizer:
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(self._settings.tokenizer)
        except Exception as e:  # noqa: BLE001  the library raises nothing narrower
            what = f"{self._settings.tokenizer} is no tokenizer: {e}"
            raise UsageError(what, "give the model's tokenizer.json") from None

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        out = np.empty((len(texts), self.width), np.float32)
        for first in range(0, len(texts), self._settings.batch):
            some = texts[first : first + self._settings.batch]
            vectors = self._with_retries(some)
            if vectors.shape[1] != self.width:
                raise DataError(
                    f"{self._settings.url} gives vectors of {vectors.shape[1]} numbers now, it was {self.width}",
                    "the model was replaced: run `settle index NAME --anew`",
                )
            out[first : first + len(some)] = vectors
        return out

    def _with_retries(self, texts: Sequence[str]) -> np.ndarray:
        """Retries while the server is busy or away. Raises ResourceError in the end."""
        what, wait = "", FIRST_WAIT
        for tries_left in reversed(range(TRIES)):
            try:
                return self._post(texts)
            except _Later as e:
                what = e.what
                if tries_left:
                    time.sleep(min(max(wait, e.seconds), LONGEST_WAIT))
                wait *= 2
        what = f"{self._settings.url} gave no vectors in {TRIES} tries: {what}"
        raise ResourceError(what, "check the server, then run it again")

    def _post(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (len(texts), width), each of length 1. Raises _Later, or SettleError when a retry is of no use."""
        url = f"{self._settings.url.rstrip('/')}/embeddings"
        body = json.dumps({"model": self._settings.model, "input": list(texts)}).encode()
        headers = {"Content-Type": "application/json"}
        if self._settings.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[self._settings.key_variable]}"
        try:
            with open_response("POST", url, self._settings.seconds, headers, body) as response:
                response.read()
        except WEB_ERRORS as e:
            raise _Later(reason(e)) from None
        if not response.is_success:
            raise self._error_of(response)
        try:
            return self._read(parse_json(response.content), len(texts))
        except ValueError:
            raise self._malformed("its answer is no JSON") from None

    def _error_of(self, response: httpx.Response) -> SettleError | _Later:
        status, where = response.status_code, self._settings.url
        what = f"{status} {_message_of(response)}"
        if status in _BUSY:
            after = response.headers.get("Retry-After", "")
            return _Later(what, float(after) if after.isdigit() else 0.0)
        if status in (401, 403):
            key = self._settings.key_variable
            wrong = f"does not take the key in {key}" if key else "wants a key"
            return UsageError(f"{where} {wrong}: {what}", "--embedder.key_variable NAME of the variable that holds it")
        if response.is_redirect:
            fix = "give the address itself: the key is sent nowhere else"
            return UsageError(f"{where} leads elsewhere: {what}", fix)
        if status == 404:
            return UsageError(
                f"{where} has no model {self._settings.model!r}, or makes no embeddings: {what}",
                "check --embedder.model and --embedder.url, which mostly ends in /v1",
            )
        return DataError(f"{where} refused the texts: {what}", "a smaller --embedder.most or --embedder.batch may help")

    def _read(self, answer: Any, number: int) -> np.ndarray:
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (KeyError, TypeError, ValueError):
            raise self._malformed("its answer holds no embeddings") from None
        if vectors.ndim != 2 or len(vectors) != number:
            raise self._malformed(f"it gave {len(vectors)} vectors for {number} texts")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise self._malformed("some of its vectors point nowhere")
        unit: np.ndarray = vectors / lengths
        return unit

    def _malformed(self, what: str) -> DataError:
        return DataError(f"{self._settings.url} does not answer as OpenAI's embeddings do: {what}", "check the url")


def _message_of(response: httpx.Response) -> str:
    raw = response.content.decode("utf-8", "replace")
    try:
        body = parse_json(raw)
        body = body.get("error", body)
        raw = body if isinstance(body, str) else str(body.get("message") or body)
    except (ValueError, AttributeError):
        pass
    return " ".join(raw.split())[:_SHOWN]


def _estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text, rather too high."""
    return len(_TOKEN.findall(text)) + 2 * len(_TWO_TOKENS.findall(text))
