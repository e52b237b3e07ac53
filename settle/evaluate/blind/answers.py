"""Answers as they are written, of one model or of two at the same time, so that people can watch and stop them."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

Writer = Callable[[], Generator[str, None, None]]  # begins an answer: its pieces as they come


class Answers:
    """Begins at once, each answer in a thread. Of several, all are shown at the pace of the slowest: how fast a model
    writes would say which one it is."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.texts = [""] * len(writers)
        self.is_stopped = False
        self._longest: int | None = None  # characters of each that are shown, once it was stopped
        pool = ThreadPoolExecutor(len(writers))
        self._work = [pool.submit(self._write, number, writer) for number, writer in enumerate(writers)]
        pool.shutdown(wait=False)

    @property
    def shown(self) -> list[str]:
        """What there is of each answer."""
        ready = [len(text) for text, work in zip(self.texts, self._work, strict=True) if not work.done()]
        longest = self._longest if self.is_stopped else min(ready, default=None)
        return [text[:longest] for text in self.texts]

    def stop(self) -> None:
        """Ends all of them where they are, at the next token."""
        if not self.is_stopped and not all(work.done() for work in self._work):
            self._longest = max(map(len, self.shown), default=0)
            self.is_stopped = True

    def wait(self) -> list[str]:
        """The answers as far as they are shown, once all have ended. Raises what one of them has ended with."""
        for work in self._work:
            work.result()
        return self.shown

    def _write(self, number: int, writer: Writer) -> None:
        try:
            with contextlib.closing(writer()) as pieces:
                for piece in pieces:
                    self.texts[number] += piece
                    if self.is_stopped:
                        break
        except BaseException:
            self.is_stopped = True  # without it, the others would write for nothing
            raise
