"""A run that many processes share: rank 0 does the run's work, the others join it for the loop."""
