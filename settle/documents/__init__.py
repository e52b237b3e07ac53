"""The user's files: read in a fenced child process, as blocks that know their place."""
