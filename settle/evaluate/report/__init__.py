"""What a person reads of a run: its card and its curves."""
