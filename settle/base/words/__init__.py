"""Amounts and events in words: what the terminal, the studio and a notebook say alike."""
