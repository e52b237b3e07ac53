"""Whether a word about a run, a check or a figure is good news: each face has a colour for it."""

TONES = {
    "running": "live", "interrupted": "warn", "damaged": "bad", "deleted": "bad", "failed": "bad", "settled": "good",
    "learned": "good", "within budget": "good", "overfitting": "warn", "out of budget": "warn", "diverged": "bad",
    "broken": "bad", "✓": "good", "outside": "warn",
}  # fmt: skip
