"""Training histories of other trainers: what they logged, and what can be read from it."""
