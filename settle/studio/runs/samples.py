"""What a model wrote while it learned."""

from settle.base.events import Sample
from settle.studio.layout import words


def sample_text(sample: Sample) -> None:
    """Show the prompt, and what the model wrote after it; a long text scrolls, by the keyboard too."""
    with words("", "p", "code tall").props("tabindex=0"):
        words(sample.prompt, "strong")
        words(sample.text.rstrip() or " (nothing but blanks)", "span")
