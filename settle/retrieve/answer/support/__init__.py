"""Whether the passages that are cited support what is claimed."""
