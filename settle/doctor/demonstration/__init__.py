"""Lessons measured on the user's own model: what they draw from, how each is measured, and how it is shown."""
