"""What every page has, without a browser: its loop would run in this thread."""

import asyncio

import pytest

nicegui = pytest.importorskip("nicegui", reason="needs the extra `studio`")

from settle.studio.layout import button  # noqa: E402


def test_a_button_stays_as_what_it_did_left_it():
    ran = []

    async def once() -> None:
        assert element.props["disabled"]
        ran.append(1)
        element.props["disabled"] = True

    async def again() -> None:
        ran.append(2)

    async def handled(handler) -> None:
        """As the framework calls it: within the page, in a task of its own."""
        with client:
            await handler()

    with nicegui.Client(nicegui.ui.page("")) as client:
        element = button("once", once)
        other = button("again", again)
    for pressed in (element, other, other):
        (listener,) = pressed._event_listeners.values()
        asyncio.run(handled(listener.handler))
    client.delete()
    assert ran == [1, 2, 2] and element.props["disabled"] is True and "disabled" not in other.props
