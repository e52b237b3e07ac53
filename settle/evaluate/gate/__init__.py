"""The gate between a live model and its exported file."""
