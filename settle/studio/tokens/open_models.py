"""The models that the pages read with: loaded when they are needed, two at most, each in a child process."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from settle.infer.tokens.token_reader import TokenReader
from settle.library.resolve import resolve

MOST = 2  # a model and the one beside it


class OpenModels:
    """Readers by the name of their model. One text is read at a time, whoever asks."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, TokenReader] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, *names: str) -> Iterator[list[TokenReader]]:
        """The readers of these models, MOST of them. Raises SettleError; a model that fails is closed."""
        with self._lock:
            try:
                yield [self._reader(name, names) for name in names]
            except Exception:
                for name in names:
                    self._close(name)
                raise

    def _reader(self, name: str, needed: tuple[str, ...]) -> TokenReader:
        if name not in self._open:
            idle = [other for other in self._open if other not in needed]
            for other in idle[: max(0, len(self._open) + 1 - MOST)]:
                self._close(other)
            self._open[name] = TokenReader(resolve(name)).__enter__()
        self._open.move_to_end(name)
        return self._open[name]

    def _close(self, name: str) -> None:
        reader = self._open.pop(name, None)
        if reader is not None:
            reader.__exit__()


OPEN_MODELS = OpenModels()
