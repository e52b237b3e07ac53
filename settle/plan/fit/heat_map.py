"""The heat map of `settle models fit`: tokens per second of models by type; white where a model does not fit."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from settle.base.amounts import three_digits
from settle.base.files import write_atomic
from settle.evaluate.report.figure_style import GREY, INK, STYLE
from settle.plan.fit.fit_table import FitRow

MOST_MODELS, DPI = 40, 150


def heat_map(rows: Sequence[FitRow], title: str, path: Path) -> Path:
    """Writes the picture, a PNG. rows: of any models and types; a pair that is missing does not fit."""
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model.name for row in rows))[:MOST_MODELS]
    types = list(dict.fromkeys(row.type for row in rows))
    speed = np.full((len(models), len(types)), np.nan)
    for row in rows:
        if row.model.name in models and row.fit.fits:
            speed[models.index(row.model.name), types.index(row.type)] = row.decode.value
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 + 1.1 * len(types), 1.6 + 0.26 * len(models)), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        norm = LogNorm(vmin=1, vmax=max(100.0, float(np.nanmax(speed)) if np.isfinite(speed).any() else 100.0))
        image = axes.imshow(np.ma.masked_invalid(speed), cmap="viridis", norm=norm, aspect="auto")
        for (line, column), value in np.ndenumerate(speed):
            text = three_digits(value) if np.isfinite(value) else "–"
            dark = np.isfinite(value) and norm(value) < 0.6
            axes.text(column, line, text, ha="center", va="center", fontsize=8,
                      color="white" if dark else INK if np.isfinite(value) else GREY)  # fmt: skip
        axes.set_xticks(range(len(types)), types)
        axes.set_yticks(range(len(models)), models, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(f"{title}\ntokens per second; – does not fit", fontsize=10, loc="left")
        figure.colorbar(image, ax=axes, label="tokens/s", shrink=0.6)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        write_atomic(path, buffer.getvalue())
    return path
