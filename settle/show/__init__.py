"""Events → a terminal: stdout carries the answer, stderr the talk. Nothing is shown that is not an event."""

import contextlib
import json as jsonlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from settle.base.event_log import to_record
from settle.base.events import (
    AnswerText,
    Event,
    ForecastComparison,
    Listing,
    ResultReady,
    RunStarted,
    Say,
    WorkStarted,
)
from settle.base.visible import visible
from settle.base.words.figures import comparison
from settle.base.words.sentences import WHY_FITS
from settle.show.signs import SimpleSigns, visible_event

if TYPE_CHECKING:
    from settle.show.talk import Talk


class Face:
    """A terminal, or a pipe, that events are shown on."""

    def __init__(self, json: bool = False, raw: bool = False, verbose: bool = False) -> None:
        """json: stdout has the folder of the work as its first line, where there is one, and the result as its last.

        raw: write the text of an answer as it is, for a pipe; elsewhere its control characters become visible signs.
        verbose: see `Talk`.
        """
        self.json, self._is_raw, self._is_verbose = json, raw, verbose
        self._talk: Talk | None = None
        self._result: Mapping[str, object] | None = None
        self._is_silent = self._has_folder = False

    def __call__(self, event: Event) -> None:
        match event:
            case AnswerText():
                self._end_talk()
                if not self.json:
                    _write(event.text if self._is_raw else visible(event.text))
                return
            case Listing() | ForecastComparison():
                if not self.json:
                    self._list(visible_event(event))
                return
            case ResultReady():
                self._result = event.result
            case RunStarted() | WorkStarted() if event.path and self.json and not self._has_folder:
                self._has_folder = True
                _write(jsonlib.dumps(to_record(event)) + "\n")
        self._say(visible_event(event))

    def _say(self, event: Event) -> None:
        """Show it on stderr. When nobody can read it any more (a closed terminal, a full disk), the work continues."""
        if self._is_silent:
            return
        try:
            if self._talk is None:  # made when first needed: rich takes longer to import than most commands to run
                from settle.show.talk import Talk

                self._talk = Talk(is_verbose=self._is_verbose)
            self._talk.show(event)
        except OSError:
            self._is_silent = True

    def error(self, what: str, fix: str) -> None:
        """Show an error, the user's or ours: what went wrong and how to fix it, without a traceback."""
        self.close()
        what, fix = (visible(text).replace("\n", "\n  ") for text in (what, fix))
        text = f"settle: {what}\n" + (f"  → {fix}\n" if fix else "")
        encoding = sys.stderr.encoding or "ascii"
        with contextlib.suppress(OSError):
            sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
            sys.stderr.flush()

    def close(self) -> None:
        """End the live display; with `json`, print the result."""
        self._end_talk()
        result, self._result = self._result, None
        if self.json and result is not None:
            _write(jsonlib.dumps(result, default=str) + "\n")

    def _end_talk(self) -> None:
        if self._talk is not None:
            with contextlib.suppress(OSError):
                self._talk.close()

    def _list(self, event: Listing | ForecastComparison) -> None:
        """Show a list as an answer: drawn on a terminal, aligned text for a pipe."""
        from rich.console import Console

        from settle.show.tables import aligned, listing

        console = Console(highlight=False)
        width = console.width if sys.stdout.isatty() else WHY_FITS
        shown = event if isinstance(event, Listing) else comparison(event.forecast, event.actual, width)
        if shown.rows:
            if sys.stdout.isatty():
                console.print(listing(shown, width))
                sys.stdout.flush()
            else:
                _write(aligned(shown) + "\n")
        if shown.note:
            self._say(Say(text=shown.note))


def _write(text: str) -> None:
    """To stdout, with simpler signs where its encoding is not Unicode."""
    encoding = sys.stdout.encoding or "utf-8"
    stream = sys.stdout if encoding.lower().startswith("utf") else SimpleSigns(sys.stdout, encoding)
    stream.write(text)
    sys.stdout.flush()
