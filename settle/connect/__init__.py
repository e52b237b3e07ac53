"""Set up other programs to talk to a running server."""
