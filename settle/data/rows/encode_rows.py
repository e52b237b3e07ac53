"""Examples → encoded rows: rendered, supervised, proved, and no longer than the model may read."""

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from settle.base.chat_template import ChatTemplate
from settle.base.errors import DataError
from settle.base.tokenizer import Tokenizer
from settle.data.layouts import Broken, Example, Kind
from settle.data.rows.render import Rendered, Renderer
from settle.data.rows.supervision import Encoded, Supervision, pieces_of, shortened
from settle.data.settings import RowSettings

TOO_LONG = "longer than the limit, before its first answer ends"
AHEAD = 8  # examples that are rendered before they are encoded

T = TypeVar("T")
Rows = list[tuple[Encoded, ...]]  # of one example: each of one segment or, of a preference, of two


@dataclass(frozen=True)
class Preview:
    """A row as it is learned from: pieces of text, each supervised or not.

    part: chosen or rejected, of a preference. num_tokens: of the whole row. num_supervised: of those that are targets.
    """

    origin: str
    part: str
    pieces: list[tuple[str, bool]]
    num_tokens: int
    num_supervised: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preview":
        return cls(**value | {"pieces": [(text, supervised) for text, supervised in value["pieces"]]})

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


class RowEncoder:
    """Encoder of examples.

    context: tokens that the model reads at most. wanted: tokens that each example would have needed to keep all of its
    answers.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        settings: RowSettings,
        kind: Kind,
        context: int | None = None,
    ) -> None:
        self.supervision = Supervision(tokenizer)
        self.supervise = settings.supervise or "assistant"
        if kind == "text":
            self.supervise = "all"
        arguments = {} if settings.thinking is None else {"enable_thinking": settings.thinking}
        self.renderer = Renderer(template, self.supervision.stops, self.supervision.controls, self.supervise, arguments)
        self._longest, self._context = settings.max_tokens, context
        self._piece = min(filter(None, [settings.max_tokens, settings.piece_tokens]), default=None)
        self.wanted: list[int] = []
        self.dropped_long = self.shortened = self.answers_lost = self.split_rows = 0

    def rows(self, examples: Iterable[tuple[T, Example]]) -> Generator[tuple[T, Example, Rows | Broken]]:
        """Yield the rows of each example, or why it has none.

        A template's process renders the next examples while this one is encoded.
        """
        if self.renderer.source is None:
            for label, example in examples:
                yield label, example, self._rows_or_reason(example, partial(self._render, example))
            return
        waiting: deque[tuple[T, Example, Future[Sequence[Rendered]]]] = deque()
        pool = ThreadPoolExecutor(1, "render ahead")
        try:
            for label, example in examples:
                waiting.append((label, example, pool.submit(self._render, example)))
                if len(waiting) > AHEAD:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _finished(
        self, label: T, example: Example, rendering: "Future[Sequence[Rendered]]"
    ) -> tuple[T, Example, Rows | Broken]:
        return label, example, self._rows_or_reason(example, rendering.result)

    def _rows_or_reason(self, example: Example, rendered: Callable[[], Sequence[Rendered]]) -> Rows | Broken:
        try:
            return self._encode(example, rendered())
        except Broken as e:
            return e

    def _render(self, example: Example) -> Sequence[Rendered]:
        return self.renderer.pair(example) if example.kind == "preference" else self.renderer.rows(example)

    def _encode(self, example: Example, rendered: Sequence[Rendered]) -> Rows:
        encoded = [self.supervision.encode(row) for row in rendered]
        if example.kind == "preference":
            return [self._pair(encoded[0], encoded[1])]
        if example.kind == "text":
            parts = pieces_of(encoded[0], self._piece) if self._piece else encoded
            return [(part,) for part in parts if len(part.ids) > 1]
        self.wanted.append(max(len(row.ids) for row in encoded))
        self.split_rows += len(encoded) - 1
        return [(row,) for row in self._fitted(encoded)]

    def preview(self, origin: str, rows: tuple[Encoded, ...]) -> list[Preview]:
        """Return how a row reads, segment by segment."""
        parts = ("chosen", "rejected") if len(rows) == 2 else ("",)
        return [
            Preview(origin, part, self.supervision.shown(row.ids, row.mask), len(row.ids), int(row.mask.sum()))
            for part, row in zip(parts, rows, strict=True)
        ]

    def refuse_lost_answers(self, most: float) -> None:
        """Raise DataError when more than that share of the examples lost an answer for its length."""
        affected = self.dropped_long + self.shortened
        if affected > most * len(self.wanted):
            lengths = np.array(self.wanted)
            share = min(1.0, affected / len(lengths) + 0.005)
            raise DataError(
                f"{affected} of {len(lengths)} rows are longer than {self._longest} tokens: {self.dropped_long} would "
                f"be left out, {self.shortened} would lose their last answers",
                f"{self._more_room(lengths)}; or allow it with --rows.most-too-long {share:.2f}",
            )

    def _more_room(self, lengths: np.ndarray) -> str:
        """Return what to do for rows of these lengths (n,): a larger limit, if the model reads as much."""
        longest, most = int(lengths.max()), int(np.quantile(lengths, 0.95))
        room = self._context or longest
        needs = ((longest, "holds every row"), (most, "holds 95 in 100"))
        if ways := [f"{tokens} {what}" for tokens, what in needs if tokens <= room]:
            return f"--rows.max-tokens {' and '.join(ways)}"
        return f"the model reads {room} tokens at most: split the rows, or take a model with a longer context"

    def _fitted(self, encoded: list[Encoded]) -> list[Encoded]:
        if self._longest is None:
            return encoded
        fitting, lost = [], 0
        for row in encoded:
            short, missing = (row, 0) if len(row.ids) <= self._longest else shortened(row, self._longest)
            lost += missing
            fitting += [short] if short is not None else []
        self.answers_lost += lost
        if not fitting:
            self.dropped_long += 1
            raise Broken(TOO_LONG)
        self.shortened += bool(lost)
        return fitting

    def _pair(self, chosen: Encoded, rejected: Encoded) -> tuple[Encoded, Encoded]:
        length = max(len(chosen.ids), len(rejected.ids))
        self.wanted.append(length)
        if self._longest is not None and length > self._longest:
            self.dropped_long += 1
            self.answers_lost += 2
            raise Broken(TOO_LONG)
        return chosen, rejected
