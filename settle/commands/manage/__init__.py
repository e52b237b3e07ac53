"""Commands for what is on this machine: models, runs and files."""
