"""A model that a server of others runs: looked at and asked, never changed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from settle.base.errors import RunError, UsageError
from settle.base.files import parse_json
from settle.base.server_state import running_server, server_key
from settle.doctor.answerer import Answerer
from settle.doctor.known_answers import KNOWN_ANSWERS
from settle.doctor.servers import Served, ServerKind
from settle.doctor.web import Web
from settle.wire.exchange import Exchange, Fields, Reply, Request, fields_of, text_of
from settle.wire.formats import WireFormat

FIRST_SECONDS, MOST_SECONDS = 60.0, 600.0  # to the first of an answer, which may have to wait for the model; for all
PROBE_FIRST_SECONDS, PROBE_SECONDS = 15.0, 5.0
SAMPLE = 500  # characters
PROBES = (1, 3)  # of the known answers: short ones, that anything can give


@dataclass(frozen=True)
class Door:
    """How to come into a server. model: of it, or None for one that chats. key: that it wants, or None."""

    model: str | None = None
    key: str | None = None

    def key_of(self, address: str) -> str | None:
        """Return the key for an address: that of settle's own server is known here."""
        server = running_server()
        if self.key is None and server is not None and address.startswith(server.address) and server.needs_key:
            return server_key(create=False)
        return self.key


class ServedModel(Answerer):
    """One model of a server."""

    def __init__(self, web: Web, kind: ServerKind, model: Served) -> None:
        self.name, self.web, self.kind, self.model = f"{model.name} at {web.address}", web, kind, model
        self._format = WireFormat.part(kind.api)()

    def probes(self) -> list[Exchange]:
        """Return short questions with the server's own settings, and its answers, those that take seconds.

        Raises RunError for a server that does not answer, or answers nonsense."""
        found = []
        for number, at in enumerate(PROBES):
            question = {"role": "user", "content": KNOWN_ANSWERS[at].question}
            request = Request((question,), (), self.model.settings, self.model.name, None, self.kind.api)
            reply = Reply()
            pieces = self.pieces(replace(request, settings={}), PROBE_FIRST_SECONDS, PROBE_SECONDS, must_end=False)
            for piece in pieces:
                reply = reply.then(piece)
            if reply.finish:
                found.append(Exchange(request, reply, f"question {number + 1} of the doctor's"))
        return found

    def num_prompt_tokens(self, request: Request) -> int | None:
        """Estimate by the ratio of two short prompts, beginnings of the same text, that the server counts."""
        text = "\n\n".join(text_of(message) for message in request.messages)
        if len(text) < 4 * SAMPLE:
            return self.ask(request.having(max_tokens=1)).prompt_tokens
        short = [Request(({"role": "user", "content": text[:n]},)) for n in (SAMPLE, 3 * SAMPLE)]
        one, two = (self.ask(request.having(max_tokens=1)).prompt_tokens for request in short)
        if one is None or two is None:
            return None
        return round(one + (two - one) * (len(text) - SAMPLE) / (2 * SAMPLE))

    def pieces(
        self, request: Request, first: float = FIRST_SECONDS, seconds: float = MOST_SECONDS, must_end: bool = True
    ) -> Iterator[Reply]:
        """Yield the answer as it comes; see `Web.lines` for the others."""
        body = self._format.body(replace(request, model=self.model.name)) | {"stream": True}
        if self.kind.api == "openai":
            body["stream_options"] = {"include_usage": True}
        whole, num_pieces = [], 0
        for line in self.web.lines(self.kind.path, body, first, seconds, must_end):
            value = _parsed(line.removeprefix("data:").strip())
            if value.get("error"):
                raise RunError(f"{self.web.address} fails: {str(value['error'])[:200]}", "look at its log")
            piece = self._format.reply(value)
            if piece is not None:
                num_pieces += 1
                yield piece
            whole.append(line)
        if not num_pieces:  # it was not streamed
            text = "\n".join(whole)
            reply = self._format.reply(_parsed(text))
            if reply is None:
                what = f"{self.web.address}{self.kind.path} answers no chat: {text.strip()[:160]!r}"
                raise RunError(what, "check what runs there")
            yield reply


def is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def open_server(web: Web, wanted: str | None, likely: str | None = None) -> ServedModel:
    """Return the model of a server that is `wanted`, else `likely`, loaded, or the first.

    Raises RunError when nothing that is known answers, UsageError for a model that it does not have."""
    kinds = sorted((part() for part in ServerKind.parts().values()), key=lambda kind: kind.rank)
    for kind in kinds:
        models = kind.models(web)
        if models is not None:
            return ServedModel(web, kind, kind.described(web, _chosen(web, models, wanted, likely)))
    titles = ", ".join(kind.title for kind in kinds)
    nonsense = f": {web.seen}" if web.seen else ""
    raise RunError(f"{web.address} answers like no server that is known{nonsense}", f"known: {titles}")


def _chosen(web: Web, models: list[Served], wanted: str | None, likely: str | None) -> Served:
    names = ", ".join(model.name for model in models)[:400]
    if wanted is not None:
        found = _named(models, wanted)
        if found is None:
            raise UsageError(f"{web.address} has no model {wanted!r}", f"it has: {names or 'none'}")
        return found
    chatting = [model for model in models if model.chats]
    if not chatting:
        raise RunError(f"{web.address} has no model that chats", f"it has: {names or 'none'}")
    asked = _named(chatting, likely) if likely else None
    return asked or next((model for model in chatting if model.is_loaded), chatting[0])


def _named(models: list[Served], name: str) -> Served | None:
    return next((m for m in models if name.removesuffix(":latest") == m.name.removesuffix(":latest")), None)


def _parsed(text: str) -> Fields:
    """Return the object that a line is; no fields where it is none."""
    with contextlib.suppress(ValueError):
        return fields_of(parse_json(text))
    return {}
