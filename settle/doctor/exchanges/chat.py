"""The exchanges that a person asks about, and who answers them again."""

from collections.abc import Iterator
from dataclasses import dataclass

from settle.doctor.answerers import Answerer
from settle.wire.exchange import Exchange, Reply


@dataclass(frozen=True)
class ChatRecord:
    """answerer: None where the model is not known, so that nothing can be asked again."""

    exchanges: tuple[Exchange, ...]
    answerer: Answerer | None = None

    @property
    def answered(self) -> Iterator[tuple[int, Exchange, Reply]]:
        """Exchanges with an answer, and their places."""
        for at, exchange in enumerate(self.exchanges):
            if exchange.reply is not None:
                yield at, exchange, exchange.reply
