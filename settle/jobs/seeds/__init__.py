"""One recipe run with several seeds: what their spread says of a single run, and of two recipes."""
