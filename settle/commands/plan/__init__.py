"""Commands that forecast before anything is run."""
