"""LM Studio, by its own REST API (https://lmstudio.ai/docs/developer/rest)."""

from typing import ClassVar

from settle.doctor.servers import Served, ServerKind, listed, number
from settle.doctor.web import Web


class LMStudio(ServerKind):
    """A server with /api/v0/models."""

    rank: ClassVar[int] = 20
    title: ClassVar[str] = "LM Studio"

    def models(self, web: Web) -> list[Served] | None:
        models = listed(web.ask("/api/v0/models"), "data")
        if models is None:
            return None
        return [
            Served(
                name=str(model["id"]),
                chats=model.get("type") in ("llm", "vlm", None),
                is_loaded=model.get("state") == "loaded",
                context=number(model.get("loaded_context_length")),
                longest=number(model.get("max_context_length")),
            )
            for model in models
            if isinstance(model.get("id"), str)
        ]
