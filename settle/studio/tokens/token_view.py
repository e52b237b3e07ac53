"""A text as tokens in the browser: chips with their probability, what might have been there, and sliders."""

from collections.abc import Callable

from nicegui.element import Element
from pydantic import BaseModel, Field

from settle.base.visible import visible_line
from settle.infer.tokens.text_reading import ReadingPair, TextReading


class TokenChoice(BaseModel):
    """What a person chose: rank `rank` at place `at`, and how the text continues behind it, for `count` tokens."""

    at: int = Field(ge=0)
    rank: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_k: int = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    count: int = Field(ge=0, le=256)


class TokenView(Element, component="token_view.js"):
    """on_place: called with the place whose alternatives the person wants to see. on_choice: with one of them."""

    def __init__(self, on_place: Callable[[int], object], on_choice: Callable[[TokenChoice], object]) -> None:
        super().__init__()
        self.props["tokens"], self.props["place"] = [], None
        self.on("place", lambda event: on_place(int(event.args)))
        self.on("choice", lambda event: on_choice(TokenChoice.model_validate(event.args)))

    def show(self, reading: TextReading, pair: ReadingPair | None) -> None:
        """Replace the text, and show what comes after it."""
        gains = list(pair.gains) if pair and pair.gains else [None] * len(reading.ids)
        self.props["tokens"] = [
            {**reading.figures_json(at), "text": visible_line(text.text), "special": text.is_special,
             "whole": visible_line(text.whole), "gain": gains[at]}
            for at, text in enumerate(reading.texts)
        ]  # fmt: skip
        self.show_place(reading, len(reading.ids))

    def show_place(self, reading: TextReading, at: int) -> None:
        """Show what could have been at token `at`; N is what comes after the text."""
        place = reading.place_json(at)
        for entry in place["top"]:
            entry["text"] = visible_line(entry["text"])
        self.props["place"] = {**place, "at": at}
