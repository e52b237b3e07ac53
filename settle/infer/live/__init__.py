"""Models that are loaded in this process by torch: sampling, and their probabilities of given tokens."""
