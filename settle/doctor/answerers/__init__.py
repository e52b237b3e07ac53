"""Who is asked again: a model of this machine in llama.cpp, or a server of others."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from settle.wire.exchange import Reply, Request


class Answerer(ABC):
    """Someone who answers requests."""

    name: str  # to show
    num_bytes: int = 0  # of memory that it takes while it is open

    def open(self) -> None:  # noqa: B027 - a server runs already
        """Make it ready; calling it twice is harmless. Raises SettleError."""

    @abstractmethod
    def pieces(self, request: Request) -> Iterator[Reply]:
        """Yield the answer as it comes; closing the iterator stops the model. Raises SettleError."""

    def num_prompt_tokens(self, request: Request) -> int | None:
        """Return the tokens of the whole prompt that a request becomes; None where unknown. Raises SettleError."""
        return None

    def close(self) -> None:  # noqa: B027 - a server is not ours to end
        """End what `open` began; `open` makes it ready again."""

    def ask(
        self, request: Request, enough: Callable[[Reply], bool] | None = None, seconds: float | None = None
    ) -> Reply:
        """Return the answer.

        enough: of the answer so far, after which no more is read. seconds: after which it is cut off. Raises
        SettleError.
        """
        reply, started = Reply(), time.monotonic()
        for piece in self.pieces(request):
            reply = reply.then(piece)
            if enough is not None and enough(reply):
                break
            if seconds is not None and time.monotonic() - started > seconds:
                break
        return reply
