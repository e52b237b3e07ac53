"""A model loaded as the person loads it, with its memory and its times watched."""
