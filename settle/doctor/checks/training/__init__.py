"""What went wrong in a training run of settle or of another trainer, and what a tuned model lost."""
