"""Talk to a trained model, in llama.cpp."""

from typing import ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command
from settle.evaluate.blind.votes import votes
from settle.machine.threads import ThreadSettings


class Chat(ThreadSettings, Command):
    """Talk to a model, or to two side by side.

    NAME is a run, a model of the store or any GGUF file. With a PROMPT, or text on stdin: one answer. --with compares
    it with a second model: both answer, and you vote without knowing which is which; --votes shows what was voted, with
    an interval once there are 15 votes. A model trained on plain text completes what you write; --template makes it
    take turns all the same.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "prompt")
    writes_answer: ClassVar[bool] = True

    name: str | None = Field(None, description="a run, a model of the store (`settle pull`), or a .gguf file")
    prompt: str | None = Field(None, description="answer this, then leave")
    with_: str | None = Field(None, description="a second model that answers beside it, as A and B in any order")
    template: bool = Field(False, description="take turns by the chat template, even if trained on plain text")
    system: str | None = Field(None, description="system prompt")
    max_tokens: int = Field(400, gt=0, description="longest answer, in tokens")
    temperature: float | None = Field(
        None, ge=0, description="0 always takes the likeliest token; what is recommended for the model if not given"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="draw from the likeliest tokens with this much of the mass; likewise"
    )
    top_k: int | None = Field(None, ge=0, description="draw from this many likeliest tokens, 0: no limit; likewise")
    draft: str | None = Field(
        None,
        description="a small model that proposes tokens, for speed: a run of `settle distill --draft`, or any with the "
        "same tokens",
    )
    context: int | None = Field(
        None, gt=0, description="tokens of prompt and answer together; what the model was trained with if not given"
    )
    seed: int | None = Field(None, ge=0, description="same seed, same answers")
    votes: bool = Field(False, description="show the votes on answers of two models")
    vote: str | None = Field(None, description="vote on a pair of answers: ID=a, b, same or bad; shows who wrote it")

    def run(self, events: Events) -> int:
        if self.votes or self.vote:
            return votes(self.vote, events)
        if self.name is None:
            raise UsageError("no model is named to talk to", "`settle chat MODEL`; `settle models` lists them")
        from settle.evaluate.blind.session import talk

        sampling = (self.max_tokens, self.temperature, self.top_p, self.top_k, self.seed)
        return talk(
            self.name, self.with_, self.prompt, sampling, events,
            system=self.system, template=self.template, draft=self.draft, context=self.context,
        )  # fmt: skip
