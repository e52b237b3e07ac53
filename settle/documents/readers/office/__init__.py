"""What office programs, printers and mail programs write: read in a fenced child process only."""
