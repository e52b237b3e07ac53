"""One open tab: what was asked for, what the page may use, and the page's one timer."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from nicegui import ui

from settle.base.errors import SettleError
from settle.base.registry import Part

TICK_SECONDS = 0.5

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Studio:
    """What the rooms above hand over. commands: the registry of commands, by name."""

    commands: Callable[[], Mapping[str, type[Part]]] = dict


@dataclass
class Visit:
    """A page that is being looked at. path: the values of {names} in its path; query: those behind the question mark.

    Text of models, documents and files only goes into labels, links and the props of elements: never into HTML or a
    script.
    """

    studio: Studio
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    _ticks: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def every_tick(self, work: Callable[[], Awaitable[None]]) -> None:
        """Call `work` twice a second while the page is open, by the one timer that a page has."""
        if not self._ticks:
            ui.timer(TICK_SECONDS, self._tick)
        self._ticks.append(reported(work))

    async def _tick(self) -> None:
        for work in self._ticks:
            await work()


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of slow work, done in a thread of its own.

    Work that lasts for minutes delays no other page, and does not keep the studio from stopping.
    """
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: Callable[[], None]) -> None:
        if not done.cancelled():
            result()

    def run() -> None:
        try:
            value = context.run(work, *args, **kwargs)
            end = partial(done.set_result, value)
        except BaseException as e:  # noqa: BLE001  whoever waits for it gets it
            end = partial(done.set_exception, e)
        with contextlib.suppress(RuntimeError):  # the studio has stopped
            loop.call_soon_threadsafe(settle, end)

    threading.Thread(target=run, daemon=True, name="page").start()
    return await done


def report(error: SettleError) -> None:
    """Show an error where the user sees it and can read it as long as they need."""
    text = f"{error.what}\n→ {error.fix}" if error.fix else error.what
    ui.notify(
        text, type="negative", multi_line=True, timeout=0, close_button="Close", classes="multi-line-notification"
    )


def reported(act: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """`act`, whose SettleError is shown to the person; what ends with the page that was left is no fault."""

    async def acted(*args: P.args, **kwargs: P.kwargs) -> None:
        client = ui.context.client
        try:
            await act(*args, **kwargs)
        except (SettleError, RuntimeError) as e:  # RuntimeError: the framework's, for an element that is gone
            if client.is_deleted:
                return
            if not isinstance(e, SettleError):
                raise
            report(e)

    return acted
