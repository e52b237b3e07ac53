"""Smaller: other types for the weights, fewer of them, and what either costs."""
