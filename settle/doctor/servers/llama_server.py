"""llama.cpp's llama-server, and settle's own, which answers like it."""

from dataclasses import replace
from typing import ClassVar

from settle.doctor.servers import Served, ServerKind, listed, number
from settle.doctor.servers.openai import served
from settle.doctor.web import Web
from settle.wire.exchange import fields_of
from settle.wire.formats.openai import SAMPLING


class LlamaServer(ServerKind):
    """A server with /props, which says how it was started."""

    rank: ClassVar[int] = 10
    title: ClassVar[str] = "llama-server"

    def models(self, web: Web) -> list[Served] | None:
        props = web.ask("/props")
        if "default_generation_settings" not in props:
            return None
        models = [served(model) for model in listed(web.ask("/v1/models"), "data") or () if model.get("id")]
        return models or [Served(str(props.get("model_alias") or props.get("model_path") or "default"))]

    def described(self, web: Web, model: Served) -> Served:
        defaults = fields_of(web.ask("/props").get("default_generation_settings"))
        if not defaults:
            return model
        settings = fields_of(defaults.get("params"))
        known = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
        length = number(settings.get("n_predict"), settings.get("max_tokens"))
        known |= {"max_tokens": length} if length else {}
        context = number(defaults.get("n_ctx")) or model.context
        return replace(model, is_loaded=True, context=context, settings=known)
