"""Ctrl-C, SIGTERM and a terminal that closes: at once where nothing can be lost, after a checkpoint in the loop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType


class Stopping:
    """While entered, SIGINT, SIGTERM and SIGHUP end the work as KeyboardInterrupt does.

    The exit code is 130 for each. SIGHUP stays ignored where it was, as `nohup` does. Within `patiently()` the first
    signal only sets a flag, which `stopping()` reads; a second Ctrl-C still leaves at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.patient = False
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.asked

    @contextlib.contextmanager
    def patiently(self) -> Iterator[None]:
        """For work that looks at the flag often and saves itself when it is set."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.patient or (self.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
            if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
                numbers.append(hang_up)
            for number in numbers:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
