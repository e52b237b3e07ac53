"""The studio: a page on the loopback that shows what the command line knows, live. It keeps no state of its own."""
