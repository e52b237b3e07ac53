"""Files of office programs, printers and mail programs: read in a fenced child process only."""
