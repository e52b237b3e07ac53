"""What a training run did: its figures, the rows that it learned from, and the same run with one setting changed."""
