"""Whatever speaks OpenAI's API: vLLM, SGLang, mlx_lm, LocalAI, Jan, KoboldCpp and others."""

from typing import ClassVar

from settle.doctor.servers import Served, ServerKind, listed, number
from settle.doctor.web import Web
from settle.wire.exchange import Fields, fields_of

_CONTEXTS = ("max_model_len", "context_length", "context_window", "max_context_length", "loaded_context_length")


class OpenAIServer(ServerKind):
    """Any server with /v1/models."""

    rank: ClassVar[int] = 90
    title: ClassVar[str] = "a server that speaks OpenAI's API"

    def models(self, web: Web) -> list[Served] | None:
        models = listed(web.ask("/v1/models"), "data")
        if models is None:
            return None
        return [served(model) for model in models if isinstance(model.get("id"), str)]


def served(model: Fields) -> Served:
    """Return a row of /v1/models as a model; servers add fields of their own."""
    meta = fields_of(model.get("meta"))
    can = model.get("capabilities")
    chats = not (isinstance(can, list) and can and "embedding" in can) and "embed" not in str(model.get("type") or "")
    context = number(*(model.get(name) for name in _CONTEXTS), meta.get("n_ctx"))
    return Served(str(model["id"]), chats, False, context, number(meta.get("n_ctx_train"), context))
