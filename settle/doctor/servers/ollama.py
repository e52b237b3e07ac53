"""Ollama, by its own API (https://docs.ollama.com/api)."""

import contextlib
from dataclasses import replace
from typing import ClassVar

from settle.doctor.servers import Served, ServerKind, listed, number
from settle.doctor.web import Web
from settle.wire.exchange import Fields, fields_of
from settle.wire.formats.openai import SAMPLING
from settle.wire.types import JsonObject


class OllamaServer(ServerKind):
    """A server with /api/tags."""

    rank: ClassVar[int] = 30
    title: ClassVar[str] = "Ollama"
    api: ClassVar[str] = "ollama"
    path: ClassVar[str] = "/api/chat"

    def models(self, web: Web) -> list[Served] | None:
        models = listed(web.ask("/api/tags"), "models")
        if models is None:
            return None
        loaded = {_name(model): model for model in listed(web.ask("/api/ps"), "models") or []}
        names = map(_name, models)
        return [
            Served(name, is_loaded=name in loaded, context=number(loaded.get(name, {}).get("context_length")))
            for name in names
        ]

    def described(self, web: Web, model: Served) -> Served:
        shown = web.ask("/api/show", {"model": model.name})
        if not shown:
            return model
        settings = _parameters(str(shown.get("parameters") or ""))
        context = model.context or number(settings.pop("num_ctx", None))
        length = number(settings.pop("num_predict", None))
        settings |= {"max_tokens": length} if length else {}
        about = fields_of(shown.get("model_info"))
        longest = number(*(value for key, value in about.items() if str(key).endswith(".context_length")))
        can = shown.get("capabilities")
        chats = not isinstance(can, list) or "completion" in can
        return replace(model, chats=chats, context=context, longest=longest, settings=settings)


def _name(model: Fields) -> str:
    return str(model.get("name") or model.get("model"))


def _parameters(text: str) -> JsonObject:
    """Return the settings of a Modelfile, one a line: `temperature    0.7`."""
    found: JsonObject = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name in {*SAMPLING, "num_ctx", "num_predict"}:
            with contextlib.suppress(ValueError):
                found[name] = float(value) if "." in value or "e" in value.lower() else int(value)
    return found
