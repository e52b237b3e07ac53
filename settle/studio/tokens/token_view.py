"""A text as tokens in the browser: chips with their probability, what might have been there, and sliders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from settle.base.visible import visible_line
from settle.infer.tokens.text_reading import ReadingPair, TextReading


@dataclass(frozen=True)
class Choice:
    """What a person chose: rank `rank` at place `at`, and how the text continues behind it, for `count` tokens."""

    at: int
    rank: int
    temperature: float
    top_k: int
    top_p: float
    count: int


class TokenView(Element, component="token_view.js"):
    """on_place: called with the place whose alternatives the person wants to see. on_choice: with one of them."""

    def __init__(self, on_place: Callable[[int], object], on_choice: Callable[[Choice], object]) -> None:
        super().__init__()
        self.props["tokens"], self.props["place"] = [], None
        self.on("place", lambda event: on_place(int(event.args)))
        self.on("choice", lambda event: on_choice(_choice(event)))

    def show(self, reading: TextReading, pair: ReadingPair | None) -> None:
        """Replaces the text, and shows what comes after it."""
        gains = list(pair.gains) if pair and pair.gains else [None] * len(reading.ids)
        self.props["tokens"] = [_chip(reading, at, gains[at]) for at in range(len(reading.ids))]
        self.show_place(reading, len(reading.ids))

    def show_place(self, reading: TextReading, at: int) -> None:
        """Shows what could have been at token `at`; N is what comes after the text."""
        place = reading.place_json(at)
        top = place["top"]
        assert isinstance(top, list)
        rows = [{**entry, "text": visible_line(str(entry["text"]))} for entry in top]
        self.props["place"] = {"at": at, "entropy": place["entropy"], "top": rows, "tail": place["tail"]}


def _chip(reading: TextReading, at: int, gain: float | None) -> Mapping[str, object]:
    text, distribution = reading.texts[at], reading.before(at)
    return {
        "text": visible_line(text.text),
        "special": text.is_special,
        "whole": visible_line(text.whole),
        "logprob": reading.logprob(at),
        "rank": int(reading.positions.ranks[at - 1]) if at else None,
        "entropy": None if distribution is None else distribution.entropy,
        "gain": gain,
    }


def _choice(event: GenericEventArguments) -> Choice:
    given = event.args
    return Choice(
        int(given["at"]), int(given["rank"]), float(given["temperature"]), int(given["top_k"]),
        float(given["top_p"]), int(given["count"]),
    )  # fmt: skip
