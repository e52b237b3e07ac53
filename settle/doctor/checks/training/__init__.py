"""What went wrong in a training run, and what a tuned model lost."""
