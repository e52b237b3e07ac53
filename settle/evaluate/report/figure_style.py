"""How every picture of settle looks.

Colours are from Okabe and Ito's palette, which colour-blind people can tell apart.
"""

from typing import Any

BLUE, GREEN, VERMILION, PURPLE, GREY, INK = "#0072B2", "#009E73", "#D55E00", "#AA6F9E", "#8C8C8C", "#222222"

STYLE: Any = {  # matplotlib types the keys of its rcParams one by one
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": INK,
    "axes.axisbelow": True,
    "legend.facecolor": "white",
    "legend.edgecolor": "white",
    "legend.framealpha": 0.85,
    "legend.borderaxespad": 0.2,
}
