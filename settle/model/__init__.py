"""Models: layers written for speed, one file an architecture."""
