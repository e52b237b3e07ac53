"""A chart that is drawn in the browser and grows: only new points are sent."""

from collections.abc import Sequence

from nicegui.element import Element

from settle.base.visible import visible_line
from settle.studio.feed import Curve

AXES = ("tokens", "time", "steps", "energy")


class Chart(Element, component="chart.js", dependencies=["axes.js"]):
    """A chart of curves that grow.

    title: with the unit of its values. series: names; their order chooses colour and dash, so that neither is the only
    sign. axes: measures of the x axis; the first is shown first.
    """

    def __init__(self, title: str, series: Sequence[str], axes: Sequence[str] = AXES[:3], height: int = 260) -> None:
        super().__init__()
        self.props["title"], self.props["axes"], self.props["height"] = title, list(axes), height
        self.props["series"] = [visible_line(name) for name in series]
        self._sent: dict[int, tuple[tuple[int, int], int, int]] = {}  # series → what of its curve was sent

    def grow(self, curves: Sequence[Curve], anew: int = 0, watts: Sequence[float | None] = ()) -> None:
        """Send what the browser does not have yet. anew: a number that changes when all curves were begun again."""
        updates: list[list[object]] = []
        for number, curve in enumerate(curves):
            kind, closed, latest = self._sent.get(number, ((-1, -1), 0, -1))
            current = (anew, curve.generation)
            if kind == current and latest == curve.latest_step:
                continue
            start = closed if kind == current else 0
            updates.append([number, start, curve.shown(start), watts[number] if number < len(watts) else None])
            self._sent[number] = (current, curve.num_closed, curve.latest_step)
        if updates:
            self.run_method("grow", updates)
