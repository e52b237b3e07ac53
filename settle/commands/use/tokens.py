"""settle tokens: every token of a text with its probability, and what might have been in its place."""

from typing import ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Tokens(ThreadSettings, Command):
    """Show a text as a model's tokens, with their probabilities.

    Of a TEXT, or text on stdin: the probability, rank and entropy of each token, and the likeliest tokens after it.
    --with compares a second model; --at and --take continue from another token.
    """

    positional: ClassVar[tuple[str, ...]] = ("name", "text")
    writes_answer: ClassVar[bool] = True

    name: str = Field(description="a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    text: str | None = Field(None, description="the text; - reads it from stdin")
    with_: str | None = Field(None, description="a second model: by how much it holds each token likelier")
    template: bool = Field(False, description="the text is a question: put it into the model's chat template")
    specials: bool = Field(False, description="control tokens that are written in the text become tokens")
    at: int | None = Field(
        None, ge=1, description="place whose likeliest tokens are shown; after the text if not given"
    )
    take: int | None = Field(None, ge=1, le=1000, description="put the token of this rank there, and continue from it")
    max_tokens: int = Field(0, ge=0, description="write this many tokens from there")
    top: int = Field(20, ge=1, le=1000, description="how many of the likeliest tokens are shown")
    temperature: float = Field(0.0, ge=0, description="of what is written; 0 always takes the likeliest token")
    top_k: int = Field(0, ge=0, description="draw from this many likeliest tokens; 0: no limit")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens with this share of the mass")
    seed: int = Field(0, ge=0, description="same seed, same tokens")
    context: int | None = Field(None, gt=1, description="most tokens that are read; 2048 if not given")

    def run(self, events: Events) -> int:
        from settle.infer.token_session import Asked, tokens

        is_drawn = bool({"temperature", "top_k", "top_p"} & self.model_fields_set)
        sampling = (self.temperature, self.top_k, self.top_p) if is_drawn else None
        asked = Asked(
            self.text, self.template, self.specials, self.with_, self.at, self.take, self.max_tokens, self.top,
            sampling, self.seed, self.context,
        )  # fmt: skip
        return tokens(self.name, asked, events)
