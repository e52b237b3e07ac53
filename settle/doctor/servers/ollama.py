"""Ollama, by its own API (https://docs.ollama.com/api)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from settle.doctor.answerers.web import Web
from settle.doctor.servers import Served, ServerKind, listed, number
from settle.wire.exchange import fields_of
from settle.wire.formats.openai import SAMPLING


class OllamaServer(ServerKind):
    """A server with /api/tags."""

    rank: ClassVar[int] = 30
    title: ClassVar[str] = "Ollama"
    api: ClassVar[str] = "ollama"
    path: ClassVar[str] = "/api/chat"

    def models(self, web: Web) -> list[Served] | None:
        models = listed(web.get("/api/tags"), "models")
        if models is None:
            return None
        loaded = {str(model.get("name") or model.get("model")): model for model in _loaded(web)}
        names = [str(model.get("name") or model.get("model")) for model in models]
        return [
            Served(name, is_loaded=name in loaded, context=number(loaded.get(name, {}).get("context_length")))
            for name in names
        ]

    def described(self, web: Web, model: Served) -> Served:
        shown = fields_of(web.post("/api/show", {"model": model.name}))
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


def _loaded(web: Web) -> list[Mapping[str, object]]:
    return listed(web.get("/api/ps"), "models") or []


def _parameters(text: str) -> dict[str, object]:
    """Return the settings of a Modelfile, one a line: `temperature    0.7`."""
    found: dict[str, object] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name in {*SAMPLING, "num_ctx", "num_predict"}:
            try:
                found[name] = float(value) if "." in value or "e" in value.lower() else int(value)
            except ValueError:
                continue
    return found
