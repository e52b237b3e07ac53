"""What the weights of a file say about themselves, and about other files of the same model."""
