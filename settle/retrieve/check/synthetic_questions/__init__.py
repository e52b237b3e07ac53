"""Questions generated from a collection's own passages."""
