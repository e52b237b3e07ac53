"""Two models compared on the same rows."""
