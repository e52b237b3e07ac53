"""settle ask: a question to indexed documents, answered with the places that say it, or refused."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Ask(ThreadSettings, Command):
    """Ask your documents; the answer cites passages that support it.

    NAME is a collection that `settle index` made; leave it out if there is only one. Without a QUESTION you ask one
    after the other on a terminal, or on stdin. A sentence that no passage supports is marked; without a language model
    the passages' best sentences are quoted. The exit code is 3 when the documents do not answer.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "question")
    writes_answer: ClassVar[bool] = True

    name: str = Field(description="a collection, as `settle index` lists them")
    question: str | None = Field(None, description="answer this, then leave; - reads it from stdin")
    model: str | None = Field(
        None,
        description="model that writes answers: a run, one of the store or a .gguf file; remembered; none: only quote",
    )
    k: int = Field(4, gt=0, le=50, description="passages that an answer is made from")
    passages: bool = Field(False, description="show the passages instead of an answer")
    max_tokens: int = Field(256, gt=0, description="longest answer, in tokens")

    def run(self, events: Events) -> int:
        try:
            from settle.retrieve.answer.ask_session import ask
        except ModuleNotFoundError as e:
            raise UsageError(f"asking documents needs {e.name}", extra_command("rag")) from None
        return ask(self.name, self.question, events, self.model, self.k, self.passages, self.max_tokens)
