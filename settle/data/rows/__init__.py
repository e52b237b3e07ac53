"""Rows to tune on: read, rendered by the model's own chat template, supervised by exact tokens, stored, and batched."""
