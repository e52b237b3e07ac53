"""What the pages about runs share: a run's events as they are written, as curves and as words."""
