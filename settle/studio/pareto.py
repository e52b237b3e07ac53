"""Pictures of one figure against another, with the frontier, and tables of the same figures."""

from collections.abc import Sequence
from dataclasses import asdict

from nicegui import ui
from nicegui.element import Element

from settle.base.visible import visible_line
from settle.base.words.amounts import amount
from settle.jobs.tradeoffs import Dot, Tradeoff
from settle.studio.layout import words
from settle.studio.table import Table

FEW = 4  # rows of a table that are shown at once


class Pareto(Element, component="pareto.js", dependencies=["axes.js"]):
    """Draws one."""

    def __init__(self, tradeoff: Tradeoff) -> None:
        super().__init__()
        best = tradeoff.best
        dots = [asdict(dot) | {"name": visible_line(dot.name), "best": dot in best} for dot in tradeoff.dots]
        self.props.update({"title": tradeoff.title, "x": tradeoff.x, "y": tradeoff.y, "dots": dots})
        self.props.update({"reference": tradeoff.reference, "share": tradeoff.is_share})


def show_tradeoffs(tradeoffs: Sequence[Tradeoff]) -> None:
    """Show each as a picture and as a table: what is chosen first, then the frontier; all but a few rows are folded."""
    if not tradeoffs:
        words("It measured nothing that can be compared.", classes="empty")
    for one in tradeoffs:
        Pareto(one)
        dots = sorted(one.dots, key=lambda dot: (not dot.chosen, dot not in one.best))
        _table(one, one.title, dots[:FEW])
        if dots[FEW:]:
            with ui.element("details"):
                words(f"{len(dots) - FEW} more", "summary")
                _table(one, f"{one.title}: more", dots[FEW:])


def _table(one: Tradeoff, title: str, dots: Sequence[Dot]) -> None:
    Table(title, ("", one.x, one.y, "memory", ""), range(1, 4), rows=[
        [dot.name, f"{dot.x:.4g}", f"{dot.y:.3g}{_interval(dot)}", amount(dot.memory, "bytes"),
         ", ".join(word for word, holds in (("chosen", dot.chosen), ("frontier", dot in one.best)) if holds)]
        for dot in dots
    ])  # fmt: skip


def _interval(dot: Dot) -> str:
    return f" ({dot.low:.2g} – {dot.high:.2g})" if dot.low is not None and dot.high is not None else ""
