"""The tone of a word about a run, a check or a figure, good news or bad: each face has a colour for it."""

BUDGETS = ("time", "tokens", "steps", "money", "passes", "budget")  # what a run may have used up

TONES = {
    "running": "live", "interrupted": "warn", "damaged": "bad", "deleted": "bad", "failed": "bad", "settled": "good",
    "learned": "good", "within budget": "good", "overfitting": "warn", "out of budget": "warn", "diverged": "bad",
    "broken": "bad", "✓": "good", "outside": "warn", **{f"{budget} used": "dim" for budget in BUDGETS},
}  # fmt: skip


def shown_verdict(verdict: str, budget: str | None) -> str:
    """Return a verdict for people: a run that took the budget it was given is no warning. budget: what it used up."""
    return f"{budget or 'budget'} used" if verdict == "out of budget" else verdict
