"""Lessons measured on the person's own model: what they draw from, how each is measured, and how it is shown."""
