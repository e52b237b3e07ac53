"""Forms of commands, made from their settings: what is typed becomes a command line, and nothing else."""
